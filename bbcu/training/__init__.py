"""The training loop, its acceleration, evaluation and probes."""
