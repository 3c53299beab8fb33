"""Commands that measure: each prints our time beside a reference's, from one run, as a ratio."""
