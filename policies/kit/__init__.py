"""Parts that policies are made of: trees of prefixes, ends, ageing, ghosts, sketches."""
