"""Tiers below the arena, one per file, and the wrappers that make any of them slow or faulty."""
