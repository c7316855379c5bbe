"""The pipe between a worker and its I/O process: garbage from either end ends the other one in order, or is ignored."""

import os
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvtier.io_process import client as client_module
from kvtier.io_process import wire
from kvtier.io_process.client import IoClient
from kvtier.io_process.main import Pipe
from kvtier.io_process.wire import FrameBuffer, FrameKind, IoSetup, Ready, frame
from kvtier.types import OpKind, OpResult, OpStatus, Placed, ScanBatch, TierOp
from tests.fuzz.mutations import JSON
from tests.fuzz.scale import SOAK_S, examples
from tests.io_process.rig import MANIFEST, file_tier, rig
from tests.patience import HANG_S, until

SETUP = IoSetup(arena_nbytes=4096, slot_nbytes=4096, group_nbytes={0: 4096}, tiers=[])
INT = st.sampled_from([0, 1, 2, 5, -1, 255, 2**31, 2**63 - 1, 1 - 2**63])
FLOAT = st.sampled_from([0.0, -1.0, 1e308, float("nan"), float("inf")])
RESULTS = st.lists(
    st.builds(OpResult, rank=INT, op=INT, status=st.sampled_from(list(OpStatus)), nbytes=INT, seconds=FLOAT, free=INT, found=INT),
    max_size=4,
)  # fmt: skip
SCANS = st.builds(
    ScanBatch, rank=INT, tier=INT, op=INT, keys=st.lists(st.binary(max_size=4), max_size=3),
    nbytes=st.lists(INT, max_size=3), mtimes=st.lists(FLOAT, max_size=3), done=st.booleans(),
)  # fmt: skip
PLACED = st.lists(st.builds(Placed, rank=INT, tier=INT, node=INT, nbytes=INT), max_size=3)
OPS = st.lists(
    st.builds(
        TierOp, op=INT, kind=st.sampled_from(list(OpKind)), tier=INT, key=st.binary(max_size=40), slot=INT,
        group=INT, end_token=INT, deadline_s=FLOAT, target=INT, nbytes=INT, text=st.text(max_size=5),
    ),
    max_size=4,
)  # fmt: skip
BODIES = st.binary(max_size=30) | JSON.map(
    lambda value: msgspec.msgpack.encode(msgspec.to_builtins(str(value) if value else value))
)
RAW = st.builds(
    lambda kind, nbytes, body: (
        struct.pack("<IB", nbytes if nbytes >= 0 else len(body), kind) + body
    ),
    st.integers(0, 255) | st.sampled_from(list(FrameKind)),
    st.sampled_from([-1, -1, -1, 0, 5, 2**26, 2**32 - 1]),
    BODIES,
)
FRAMES = st.one_of(
    RAW,
    st.binary(max_size=20),
    RESULTS.map(lambda body: frame(FrameKind.RESULTS, body)),
    SCANS.map(lambda body: frame(FrameKind.SCAN, body)),
    PLACED.map(lambda body: frame(FrameKind.PLACED, body)),
    OPS.map(lambda body: frame(FrameKind.OPS, body)),
    st.text(max_size=3).map(lambda error: frame(FrameKind.HELLO, Ready(error))),
)
NEST = struct.pack("<IB", 60_000, FrameKind.RESULTS) + b"\x91" * 60_000


class Fake:
    """An I/O process that says what the test wants."""

    def __init__(self, said: bytes) -> None:
        self.inbox = FrameBuffer()
        self.inbox.feed(said)
        self.unsent = bytearray()
        self.broken = self.killed = False
        self.pid = 1

    def send(self) -> None:
        self.unsent.clear()

    def receive(self) -> None:
        pass

    def kill(self) -> None:
        self.killed = True

    def reaped(self) -> bool:
        return True

    def leave(self, timeout_s: float) -> None:
        del timeout_s

    def close(self) -> None:
        pass


@given(st.lists(FRAMES, max_size=6), OPS, st.binary(max_size=3))
@example([frame(FrameKind.HELLO, Ready()), NEST], [], b"")
@example([frame(FrameKind.HELLO, Ready()), frame(FrameKind.HELLO, Ready("no"))], [], b"")
@examples(120)
def test_what_a_worker_hears(said: list[bytes], ops: list[TierOp], tail: bytes) -> None:
    """No exception reaches the worker's hook, and every operation is answered once."""
    hello = frame(FrameKind.HELLO, Ready())
    with patch.object(client_module, "Child", lambda *_: Fake(hello + b"".join(said) + tail)):
        client = IoClient(SETUP, -1)
        answered: list[int] = []
        asked = {op.op: op for op in ops if op.kind is not OpKind.HASTEN}
        for round_ in range(8):
            answered += [item.op for item in client.poll() if isinstance(item, OpResult)]
            if round_ == 1:
                client.submit(list(asked.values()))
        client.close()
        answered += [item.op for item in client.poll() if isinstance(item, OpResult)]
    assert sorted(answered) == sorted(asked)


class Deaf:
    """A service that takes everything."""

    def __init__(self) -> None:
        self.ops: list[TierOp] = []

    def handle(self, op: TierOp) -> None:
        self.ops.append(op)


@given(st.lists(FRAMES, min_size=1, max_size=6))
@example([NEST[:4] + bytes([FrameKind.OPS]) + NEST[5:]])
@examples(120)
def test_what_an_io_process_hears(said: list[bytes]) -> None:
    """It takes operations, or ends by what `main` ends by."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        pipe = Pipe(theirs)
        theirs.setblocking(False)
        ours.send(b"".join(said))
        service = Deaf()
        with suppress(ConnectionError, ValueError, msgspec.MsgspecError):
            pipe.receive(service)  # type: ignore[arg-type] # all that is called of it
        assert all(isinstance(op, TierOp) for op in service.ops)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0",
        bytes(range(1, 255)) * 2,
        struct.pack("<IB", 2**32 - 1, 0),
        struct.pack("<IB", 3, 0) + b"\xc1\xc1\xc1",
        frame(FrameKind.SETUP, SETUP) + b"\xff" * 5,
        frame(FrameKind.SETUP, SETUP) + struct.pack("<IB", 4, FrameKind.OPS) + b"\x91\x91\x91\xc1",
        frame(FrameKind.SETUP, SETUP) + frame(FrameKind.OPS, [TierOp(1, OpKind.READ, 9)]),
    ],
)
def test_a_real_process_ends_by_itself(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    arena = os.memfd_create("arena")
    os.truncate(arena, 4096)
    fds = (theirs.fileno(), arena)
    words = [sys.executable, "-Pm", "kvtier.io_process.main", *map(str, fds)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        words, pass_fds=fds, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    theirs.close()
    os.close(arena)
    with ours:
        with suppress(OSError):
            ours.sendall(said)
            ours.shutdown(socket.SHUT_WR)
        out = process.communicate(timeout=HANG_S)[0].decode()
    assert process.returncode == 0, out
    assert "Traceback" not in out


@given(st.lists(OPS, max_size=3))
@examples(2 + bool(SOAK_S) * 5)
def test_a_real_pair_answers_every_operation(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[TierOp]]
) -> None:
    """Whatever is asked, slots and tiers that are not there too: one answer each, and the process lives."""
    with rig([file_tier(tmp_path_factory.mktemp("wire") / "kv")]) as io:
        pid = io.client.pid
        mine = [op for batch in batches for op in batch if op.kind is not OpKind.HASTEN]
        ops = [op._replace(op=1000 + i) for i, op in enumerate(mine)]
        io.submit(*ops)
        io.until(lambda: all(op.op in io.results for op in ops))
        assert io.open(MANIFEST).status is OpStatus.OK
        assert io.client.pid == pid
        until(lambda: io.client.pending == 0, "all is answered", io._poll)


def test_decoders_say_no_in_words() -> None:
    for decoder in (wire.RESULTS, wire.SCAN, wire.PLACED, wire.OPS, wire.HELLO, wire.SETUP):
        with pytest.raises((msgspec.MsgspecError, ValueError)):
            decoder.decode(b"\xc1")
