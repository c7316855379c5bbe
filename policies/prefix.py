"""The base of a prefix-aware eviction policy, at the address that policies of others import it from."""

from kvtier.policies.kit.heap import Leaf
from kvtier.policies.kit.prefix import Gone, PrefixPolicy

__all__ = ["Gone", "Leaf", "PrefixPolicy"]
