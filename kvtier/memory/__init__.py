"""The host's memory: the arena of slots, where it is bound, who fills it."""
