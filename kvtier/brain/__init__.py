"""The parts of the brain, one concern each; `kvtier.brain.cache` puts them together. Stdlib only, no I/O."""
