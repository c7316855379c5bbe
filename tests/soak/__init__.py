"""The soak: a real engine under every kind of harm at once, for as long as is asked; `python -m tests.soak`."""
