"""Which epoch this engine starts in, and what of its resets outlives it.

1. Each directory of a tier notes in which epoch the next engine starts. The manifest names it, so an engine opens
   no namespace of another epoch.
2. A reset notes a random one before it returns. From then on nothing that was written before is ever opened again,
   whether the I/O processes hear of the reset or not: they may hang, be dead, or never get another step.
3. What this engine writes after a reset is of a third epoch, which nobody else ever names: the weights may not be
   those on the disk any more.
4. A note takes a thread of its own per directory, which is waited for, but not for long. If it is not there by
   then the log says so, and the thread goes on. A later reset gives that thread a later epoch.
5. A directory that cannot be read at the start is as good as one that was reset: the engine finds nothing in it.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kvtier.config import Config
from kvtier.errors import reason
from kvtier.io_process.record import namespace_of
from kvtier.registry import lookup
from kvtier.tier import Site
from kvtier.tiers import directory, epoch

logger = logging.getLogger(__name__)

_READ_S = 10.0  # at the start
_NOTE_S = 2.0  # at a reset, for all directories together


class Epochs:
    """The epochs of one engine's tiers that outlive it. EngineCore's main thread."""

    def __init__(
        self, directories: Sequence[Path] = (), manifest: Callable[[], str] = lambda: ""
    ) -> None:
        """Read what the directories note; waits, for the start of the engine only.

        Args:
            manifest: describes this engine without an epoch; not called before the engine is made.
        """
        self._manifest = manifest
        self._namespace = ""
        self._notes = [_Note(path) for path in directories]
        self._found: dict[Path, list[tuple[str, str]]] = {}
        readers = [
            threading.Thread(target=self._read, args=(note.path,), daemon=True)
            for note in self._notes
        ]
        for reader in readers:
            reader.start()
        until = time.monotonic() + _READ_S
        for reader in readers:
            reader.join(max(0.0, until - time.monotonic()))
        self._complete = len(self._found) == len(readers)

    def first(self) -> str:
        """Say which epoch this engine starts in."""
        if not self._notes:
            return ""
        own = self._namespace = namespace_of(self._manifest())
        if not self._complete:
            return f"unread-{secrets.token_hex(16)}"
        found = {name for notes in self._found.values() for of, name in notes if of == own}
        # Of several notes none is obeyed alone: what they say together, nobody has ever written in.
        return "+".join(sorted(found))

    def end(self, *, waits: bool = True) -> None:
        """Let no later engine start in this epoch; mostly waits a moment for the disks, and never raises."""
        try:
            if self._notes and not self._namespace:
                self._namespace = namespace_of(self._manifest())
        except Exception:
            logger.exception("kvtier: the reset is not noted")
            return
        fresh = secrets.token_hex(16)
        busy = [note.begin(self._namespace, fresh) for note in self._notes]
        if not waits:
            return
        until = time.monotonic() + _NOTE_S
        for note, hangs in zip(self._notes, busy, strict=True):
            note.wait(0.0 if hangs else max(0.0, until - time.monotonic()))

    def _read(self, path: Path) -> None:
        try:
            self._found[path] = epoch.notes(path)
        except OSError as exc:
            logger.warning(
                "kvtier: it cannot be read which epoch %s is in (%s): nothing is found there",
                path,
                exc,
            )


class _Note:
    """One directory's note. `begin` and `wait` belong to one thread; the file system to a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ended = threading.Condition()
        self._wanted = ("", "")  # namespace, epoch
        self._busy = False
        self._why = ""  # it is not there
        self._said = ""

    def begin(self, namespace: str, fresh: str) -> bool:
        """Begin to note an epoch; return whether an earlier one is still being noted."""
        with self._ended:
            self._wanted, busy = (namespace, fresh), self._busy
            if not busy:
                self._busy = True
                threading.Thread(target=self._work, name="epoch", daemon=True).start()
        return busy

    def wait(self, timeout_s: float) -> None:
        """Wait until it is there, or say once that it is not."""
        with self._ended:
            done = self._ended.wait_for(lambda: not self._busy, timeout_s)
            why = self._why if done else "the file system does not answer"
        if why and why != self._said:
            logger.warning(
                "kvtier: %s: the reset is not noted yet (%s); what was written before may be found after a restart, "
                "unless the I/O processes carry the reset out",
                self.path,
                why,
            )
        self._said = why

    def _work(self) -> None:
        while True:
            with self._ended:
                wanted = self._wanted
            why = self._attempt(wanted)
            with self._ended:
                if wanted == self._wanted:
                    self._busy, self._why = False, why
                    self._ended.notify_all()
                    return

    def _attempt(self, wanted: tuple[str, str]) -> str:
        try:
            epoch.note(self.path, *wanted)
        except OSError as exc:
            return reason(exc)
        return ""


def directories(config: Config, engine: int | None) -> list[Path]:
    """List where the tiers of an engine note resets; a tier without such a place is not in it."""
    found = []
    for tier in config.tiers[1:]:
        option = getattr(lookup("tier", tier.kind), "notes_in", "")
        path = tier.options.get(option) if option else None
        if isinstance(path, str):
            found.append(directory.base_of(Path(path), Site(tier.name, engine=engine)))
    return found
