"""The loop of a sweep: rounds of trials, launchers and retries."""
