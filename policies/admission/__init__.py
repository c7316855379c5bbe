"""Which chunks enter a tier."""
