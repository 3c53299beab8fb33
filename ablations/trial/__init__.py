"""One cell under one seed: from config to identity, and from trial to result."""
