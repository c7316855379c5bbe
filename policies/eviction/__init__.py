"""Which chunks leave a tier when it is full."""
