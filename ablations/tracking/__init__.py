"""Everything that is recorded in MLflow; the only package that imports it."""
