"""What the numbers are about: contrasts, claims of the paper, depth and trade-offs."""
