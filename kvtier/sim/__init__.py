"""Replays traces through the brain in virtual time. Nothing here caches: `TieredCache` decides."""
