"""A worker without an engine: an arena, an I/O process and its client, for tests and benches."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvtier.io_process.client import IoClient
from kvtier.io_process.wire import IoSetup
from kvtier.memory.arena import Arena
from kvtier.types import OpKind, OpResult, ScanBatch, TierOp
from tests.patience import HANG_S, until

Bytes = npt.NDArray[np.uint8]

MANIFEST = '{"model": "test"}'
GROUP_NBYTES = {0: 20000, 1: 8192}
SLOT_NBYTES = 20480


def key_of(number: int, group: int = 0) -> bytes:
    return number.to_bytes(32, "little") + group.to_bytes(4, "big")


def pattern(number: int, nbytes: int) -> Bytes:
    """Bytes that shrink to about half, different for every number."""
    return np.random.default_rng(number).integers(0, 16, nbytes, dtype=np.uint8)


def file_tier(path: Path, codec: str = "raw", **more: object) -> dict[str, object]:
    return {
        "name": "nvme",
        "kind": "file",
        "codec": {"kind": codec, "options": {}},
        "options": {"path": str(path)},
        **more,
    }


class Rig:
    """Submit operations and collect what comes back."""

    def __init__(self, client: IoClient, arena: Arena) -> None:
        self.client = client
        self.arena = arena
        self.path = Path()  # of the tier, where a test needs it
        self.results: dict[int, OpResult] = {}
        self.scans: list[ScanBatch] = []
        self._ids = itertools.count(1)

    def op(self, kind: OpKind, number: int = 0, **fields: object) -> TierOp:
        op = TierOp(op=next(self._ids), kind=kind, tier=1, key=key_of(number), slot=number)
        return op._replace(**fields)  # type: ignore[arg-type] # the fields of TierOp

    def submit(self, *ops: TierOp) -> None:
        self.client.submit(ops)

    def until(self, done: Callable[[], object], what: str = "the I/O process answers") -> None:
        """Poll until `done` is true."""
        until(done, what, self._poll)

    def run(self, *ops: TierOp) -> list[OpResult]:
        """Submit and wait for every answer."""
        self.submit(*ops)
        self.until(lambda: all(op.op in self.results for op in ops))
        return [self.results[op.op] for op in ops]

    def one(self, kind: OpKind, number: int = 0, **fields: object) -> OpResult:
        return self.run(self.op(kind, number, **fields))[0]

    def open(self, manifest: str = MANIFEST) -> OpResult:
        """Open the tier and wait for the end of its scan."""
        before = len(self.scans)
        result = self.one(OpKind.OPEN, text=manifest)
        self.until(lambda: any(batch.done for batch in self.scans[before:]))
        return result

    def submit_and_take(self, *ops: TierOp) -> None:
        """Submit and wait until the process has them: it handles in order, and answers CANCEL at once."""
        self.submit(*ops)
        self.one(OpKind.CANCEL)

    def running(self, kind: OpKind, number: int) -> TierOp:
        """Submit until such an operation hangs in a thread: then CANCEL no longer finds it queued."""
        while True:
            op = self.op(kind, number)
            self.submit(op)
            self.one(OpKind.CANCEL, target=op.op)
            if op.op not in self.results:
                return op

    def fill(self, slot: int, number: int | None = None, group: int = 0) -> Bytes:
        """Put a chunk in a slot and return a copy of it."""
        chunk = pattern(slot if number is None else number, GROUP_NBYTES[group])
        self.arena.slot(slot)[: len(chunk)] = chunk
        return chunk

    def _poll(self) -> None:
        for item in self.client.poll():
            if isinstance(item, ScanBatch):
                self.scans.append(item)
            else:
                assert item.op not in self.results, "answered twice"
                self.results[item.op] = item
        time.sleep(0.001)


@contextmanager
def rig(
    tiers: Sequence[dict[str, object]],
    *,
    slots: int = 64,
    slot_nbytes: int = SLOT_NBYTES,
    open_now: bool = True,
    clock: Callable[[], float] = time.monotonic,
    made: Callable[..., IoClient] = IoClient,
    **setup: object,
) -> Iterator[Rig]:
    arena = Arena(slots, slot_nbytes)
    client = None
    try:
        client = made(
            IoSetup(
                **{  # type: ignore[arg-type] # the fields of IoSetup
                    "arena_nbytes": arena.nbytes,
                    "slot_nbytes": slot_nbytes,
                    "group_nbytes": GROUP_NBYTES,
                    "tiers": list(tiers),
                    "threads": 4,
                    **setup,
                }
            ),
            arena.fd,
            clock,
        )
        client.wait_ready()
        rig = Rig(client, arena)
        if open_now:
            rig.open()
        yield rig
    finally:
        if client:
            client.close(HANG_S)
        arena.close()


def rewrite(control: Path, faults: dict[str, object]) -> None:
    """Write a FaultyTier's control file at once; its mtime differs from the one before."""
    before = control.stat().st_mtime_ns if control.exists() else 0
    fresh = control.with_suffix(".new")
    fresh.write_text(json.dumps(faults))
    os.utime(fresh, ns=(before + 10**9, before + 10**9))
    os.replace(fresh, control)
