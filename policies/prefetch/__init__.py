"""Which chunks come up before they are asked for."""
