"""kvtier: more KV cache than the GPU has, in tiers below it."""

__version__ = "0.1.0"
