"""Seeds for what is undecided: which trials come next, and what has been decided so far."""
