"""Commands that measure performance; most print ratios to a reference that is measured in the same run."""
