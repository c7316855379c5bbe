"""How fast the configured tiers are here: through a real I/O process, and with fio beside it."""
