"""What was run: results, methods, settings and origins."""
