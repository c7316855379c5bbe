"""Tests on the real engine (vLLM on CPU)."""
