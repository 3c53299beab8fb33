"""What a terminal shows: the live view of a sweep and the status command."""
