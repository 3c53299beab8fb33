"""Cells chosen by Optuna as the sweep goes."""
