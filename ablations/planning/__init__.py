"""From the rows of a design to the trials of a plan."""
