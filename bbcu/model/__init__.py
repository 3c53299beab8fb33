"""Binary units, the networks around them, published methods, cost and released checkpoints."""
