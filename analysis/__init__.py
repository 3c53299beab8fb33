"""What the trials of a study mean: from MLflow to a report that shows every number's n, spread and source."""
