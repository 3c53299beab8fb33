"""Estimates, tests, factorial effects and their simulation. Numbers only."""
