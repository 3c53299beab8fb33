"""Measurements of speed, apart from the tests: no number here passes or fails."""
