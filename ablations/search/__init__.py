"""Choose cells by Optuna while a sweep runs."""
