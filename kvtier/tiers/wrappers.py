"""Tiers that make another tier slow or faulty, for tests and for rehearsals of a bad day."""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from kvtier.errors import TierError
from kvtier.tier import Bytes, Entry, Tier


class TierWrapper(Tier):
    """Pass every call on to `inner`; a wrapper overrides what it changes."""

    def __init__(self, inner: Tier) -> None:
        self._inner = inner

    def open(self, namespace: str, manifest: str) -> None:
        self._inner.open(namespace, manifest)

    def reclaim(self, nbytes: int) -> int:
        return self._inner.reclaim(nbytes)

    def free(self, nbytes: int) -> int | None:
        return self._inner.free(nbytes)

    def located(self) -> list[tuple[int, int]]:
        return self._inner.located()

    @property
    def memory_nbytes(self) -> int:
        return self._inner.memory_nbytes

    def read(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        return self._inner.read(key, bufs)

    def write(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        return self._inner.write(key, bufs)

    def remove(self, key: bytes) -> bool:
        return self._inner.remove(key)

    def scan(self) -> Iterator[Entry]:
        return self._inner.scan()

    def reset(self, namespace: str, manifest: str) -> None:
        self._inner.reset(namespace, manifest)

    def close(self) -> None:
        self._inner.close()


class SlowConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each call takes longer; `bytes_per_s` 0 means no limit."""

    read_s: float = 0.0
    write_s: float = 0.0
    bytes_per_s: float = 0.0


class SlowTier(TierWrapper):
    """Wait before each read and write."""

    Config = SlowConfig

    def __init__(
        self, inner: Tier, config: SlowConfig, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        super().__init__(inner)
        self._config = config
        self._sleep = sleep

    def read(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        self._wait(self._config.read_s, bufs)
        return super().read(key, bufs)

    def write(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        self._wait(self._config.write_s, bufs)
        return super().write(key, bufs)

    def _wait(self, seconds: float, bufs: Sequence[Bytes]) -> None:
        if rate := self._config.bytes_per_s:
            seconds += sum(map(len, bufs)) / rate
        self._sleep(seconds)


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong now. An errno is its name, `ENOSPC`; `hang` holds reads and writes until it is false."""

    read_errno: str = ""
    write_errno: str = ""
    remove_errno: str = ""
    read_delay_s: float = 0.0
    write_delay_s: float = 0.0
    hang: bool = False
    key: str = ""  # in hex: of this record alone; empty: of every record

    def of(self, key: bytes) -> "Faults":
        """Return what goes wrong with a record."""
        return self if self.key in ("", key.hex()) else Faults()


class FaultyConfig(Faults, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The faults; or the path of a JSON file of them, which is read again whenever it changes."""

    control: str = ""


class FaultyTier(TierWrapper):
    """Fail, delay or hang reads and writes, or refuse removals, as its configuration or its control file says."""

    Config = FaultyConfig

    def __init__(
        self, inner: Tier, config: FaultyConfig, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        super().__init__(inner)
        self._faults: Faults = config
        self._config = config
        self._seen: tuple[int, ...] = ()
        self._sleep = sleep

    def read(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        faults = self._gate(key)
        self._sleep(faults.read_delay_s)
        _fail("read", faults.read_errno)
        return super().read(key, bufs)

    def write(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        faults = self._gate(key)
        self._sleep(faults.write_delay_s)
        _fail("write", faults.write_errno)
        return super().write(key, bufs)

    def remove(self, key: bytes) -> bool:
        _fail("remove", self._current().of(key).remove_errno)
        return super().remove(key)

    def _gate(self, key: bytes) -> Faults:
        """Return the faults of a record now, as soon as they hang no more."""
        while (faults := self._current().of(key)).hang:
            self._sleep(0.02)
        return faults

    def _current(self) -> Faults:
        if not self._config.control:
            return self._faults
        path = Path(self._config.control)
        try:
            stat = path.stat()
            changed = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if changed != self._seen:
                self._faults = msgspec.json.decode(path.read_bytes(), type=Faults)
                self._seen = changed
        except FileNotFoundError:
            return self._config
        except msgspec.MsgspecError:
            return self._faults  # half written: not noted as seen, so it is read again
        return self._faults


def _fail(operation: str, name: str) -> None:
    if name:
        number = int(getattr(errno, name))
        raise TierError("faulty", operation, f"injected {name}") from OSError(
            number, os.strerror(number)
        )
