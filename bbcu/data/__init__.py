"""Tasks, metrics and images: from files to pairs of input and truth, and to training patches."""
