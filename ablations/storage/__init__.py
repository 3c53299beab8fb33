"""A study's folder: results, leases, attempts, snapshots and status. No MLflow, no terminal."""
