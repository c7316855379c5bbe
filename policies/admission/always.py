"""Admit every chunk: the default."""

from kvtier.policy import AdmissionPolicy
from kvtier.types import BlockKey


class AlwaysPolicy(AdmissionPolicy):
    """Let everything in; eviction alone decides what stays."""

    def admits(self, key: BlockKey, end_token: int) -> bool:
        return True
