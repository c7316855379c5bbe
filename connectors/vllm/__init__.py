"""The vLLM connector: everything that knows vLLM is here."""
