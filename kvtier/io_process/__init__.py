"""The I/O process: lower tiers, codecs and checksums, away from the engine's interpreter."""
