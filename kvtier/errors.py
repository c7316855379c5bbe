"""What kvtier raises. Absence is never an error: it is None, False or a status."""


class KvtierError(Exception):
    """Base of everything kvtier raises on purpose."""


class ConfigError(KvtierError, ValueError):
    """A configuration that cannot work; the message names the path of the mistake and the fix."""


class TierError(KvtierError):
    """A tier's medium failed: `tier` and `operation` say where; the cause is chained."""

    def __init__(self, tier: str, operation: str, reason: str) -> None:
        super().__init__(f"{tier}: {operation}: {reason}")
        self.tier = tier
        self.operation = operation


class CorruptBlock(KvtierError):
    """Bytes that are not what their record claims, or not a record at all."""
