"""What kvtier raises. Absence is never an error: it is None, False or a status."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a medium, its inodes or a quota are used up."""
_HEAD, _TAIL = 700, 300


def one_line(text: str) -> str:
    """Make a message fit for a log: what cannot be printed is escaped, and of a long one the middle is left out.

    Its start names the place and its end the fix; between them may stand whatever somebody wrote.
    """
    text = _cut(text)
    if text.isprintable():
        return text
    return _cut("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def _cut(text: str) -> str:
    left_out = len(text) - _HEAD - _TAIL
    return f"{text[:_HEAD]} ...{left_out} more... {text[-_TAIL:]}" if left_out > 0 else text


def reason(exc: BaseException) -> str:
    """Say what went wrong in words: of what the system says neither its number nor the file, which a message names itself."""
    return (isinstance(exc, OSError) and exc.strerror) or str(exc)


class KvtierError(Exception):
    """Base of everything kvtier raises on purpose."""


class ConfigError(KvtierError, ValueError):
    """A configuration that cannot work; the message names the place of each mistake and the fix, in one line."""

    place = ""  # of the one mistake, as the message names it: `tiers[1].capacity`

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = tuple(map(one_line, mistakes))
        super().__init__("; ".join(self.mistakes))


class TierError(KvtierError):
    """A tier's medium failed: `tier` and `operation` say where; the cause is chained."""

    def __init__(self, tier: str, operation: str, reason: str) -> None:
        super().__init__(f"{tier}: {operation}: {reason}")
        self.tier = tier
        self.operation = operation

    @property
    def full(self) -> bool:
        """Whether room is all that lacks."""
        return isinstance(self.__cause__, OSError) and self.__cause__.errno in FULL

    @property
    def quota(self) -> bool:
        """Whether a quota is used up: what the medium has free does not count then."""
        return isinstance(self.__cause__, OSError) and self.__cause__.errno == errno.EDQUOT


class CorruptBlock(KvtierError):
    """Bytes that are not what their record claims, or not a record at all."""


class Undecodable(CorruptBlock):
    """A whole record, as it was written, that nothing here can decode."""
