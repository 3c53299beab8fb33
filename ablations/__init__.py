"""Which trials of a study exist, and how they run and are recorded."""
