"""vLLM's models and modes on real engines: `make test-modes`."""
