"""The records of a file tier, read by a rank that does not keep them: all ranks have the same KV, and one writes it."""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvtier.errors import TierError
from kvtier.tier import Bytes, Entry, Site, Tier
from kvtier.tiers import directory
from kvtier.tiers.file import READ, FileConfig, list_records, name_of, read_into, refuses_direct


class FileReader(Tier):
    """Read what the rank of `site` keeps. Any thread; takes no lock, and changes nothing that lasts.

    A namespace is found by its path with every call: the rank that keeps it may have to make it anew.
    """

    Config = FileConfig

    def __init__(self, config: FileConfig, site: Site) -> None:
        self._site = site
        self._base = directory.base_of(Path(config.path), site)
        self._folder: Path | None = None
        self._direct = 0

    def open(self, namespace: str, manifest: str) -> None:
        self._folder = self._base / namespace / f"r{self._site.rank}"
        try:
            self._direct = 0 if refuses_direct(self._base) else os.O_DIRECT
        except OSError:  # full, or not made yet: through the page cache then
            self._direct = 0

    def free(self, nbytes: int) -> int | None:
        return 1 << 62  # the rank that writes knows

    def read(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        try:
            fd = os.open(self._opened("read") / name_of(key), READ | self._direct)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                return 0
            raise TierError(self._site.name, "read", str(exc)) from exc
        try:
            return read_into(fd, bufs)
        except OSError as exc:
            raise TierError(self._site.name, "read", str(exc)) from exc
        finally:
            os.close(fd)

    def write(self, key: bytes, bufs: Sequence[Bytes]) -> int:
        raise TierError(self._site.name, "write", f"rank {self._site.rank} keeps the records")

    def remove(self, key: bytes) -> bool:
        return False

    def scan(self) -> Iterator[Entry]:
        try:
            fd = os.open(self._opened("scan"), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise TierError(self._site.name, "scan", str(exc)) from exc
        try:
            yield from list_records(fd)
        except OSError as exc:
            raise TierError(self._site.name, "scan", str(exc)) from exc
        finally:
            os.close(fd)

    def reset(self, namespace: str, manifest: str) -> None:
        self.open(namespace, manifest)

    def close(self) -> None:
        self._folder = None

    def _opened(self, operation: str) -> Path:
        if self._folder is None:
            raise TierError(self._site.name, operation, "no namespace is open")
        return self._folder
