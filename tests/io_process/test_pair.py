"""A rank's two processes: what happens to the store that engines share never touches this machine's tiers."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvtier.io_process.pair import IoPair
from kvtier.io_process.record import namespace_of
from kvtier.types import PAGE, OpKind, OpStatus, Priority, TierOp
from tests.io_process.rig import GROUP_NBYTES, MANIFEST, Rig, file_tier, key_of, rig
from tests.redis_server import RedisServer, redis_server

NEAR, FAR = 1, 2

_pair: Any = IoPair  # which is used as a client is


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as made:
        yield made


def redis_tier(server: RedisServer) -> dict[str, object]:
    options = {"url": server.url, "timeout_s": 0.5}
    codec = {"kind": "raw", "options": {}}
    return {"name": "kv", "kind": "redis", "codec": codec, "options": options}


@contextmanager
def pair(server: RedisServer, path: Path, **more: object) -> Iterator[Rig]:
    tiers = [file_tier(path / "kv"), redis_tier(server)]
    with rig(tiers, made=_pair, open_now=False, **more) as made:  # type: ignore[arg-type]
        assert made.one(OpKind.OPEN, text=MANIFEST, slot=-1).status is OpStatus.OK
        assert made.one(OpKind.OPEN, tier=FAR, text=MANIFEST, slot=-1).status is OpStatus.OK
        yield made


def ask(made: Rig, *numbers: int) -> TierOp:
    keys = tuple(map(key_of, numbers))
    return made.op(OpKind.ASK, tier=FAR, keys=keys, slot=-1, deadline_s=2.0)


def name_of(number: int, rank: int = 0) -> bytes:
    return f"kvtier:{namespace_of(MANIFEST)}:r{rank}:".encode() + key_of(number)


def both_alive(made: Rig) -> tuple[int, int]:
    pair: Any = made.client
    assert pair.near
    assert pair.far
    assert pair.near.pid
    assert pair.far.pid
    return pair.near.pid, pair.far.pid


def test_each_tier_has_its_own_and_what_is_written_is_asked_for_and_read(
    server: RedisServer, tmp_path: Path
) -> None:
    with pair(server, tmp_path) as made:
        chunk = made.fill(3)
        for tier in (NEAR, FAR):
            assert made.one(OpKind.WRITE, 3, tier=tier).status is OpStatus.OK
        assert made.run(ask(made, 3, 4))[0].found == 1
        assert made.run(ask(made, 4, 3))[0].found == 0
        made.fill(3, 9)
        assert made.one(OpKind.READ, 3, tier=FAR).status is OpStatus.OK
        assert np.array_equal(made.arena.slot(3)[: GROUP_NBYTES[0]], chunk)
        assert made.one(OpKind.READ, 4, tier=FAR).status is OpStatus.MISSING
        assert made.client.pending == 0
        near, far = both_alive(made)
        assert near != far


def test_what_another_engine_wrote_is_not_written_again(
    server: RedisServer, tmp_path: Path
) -> None:
    with pair(server, tmp_path) as made:
        server.call(b"SET", name_of(3), b"theirs".ljust(PAGE))
        made.fill(3)
        done = made.one(OpKind.WRITE, 3, tier=FAR)
        assert (done.status, done.nbytes) == (OpStatus.OK, 0)
        assert server.call(b"GET", name_of(3)) == b"theirs".ljust(PAGE)


def test_a_corrupt_record_is_removed_by_its_finder(server: RedisServer, tmp_path: Path) -> None:
    with pair(server, tmp_path) as made:
        made.fill(3)
        made.one(OpKind.WRITE, 3, tier=FAR)
        server.call(b"SETRANGE", name_of(3), b"5000", b"\xff\xff")
        assert made.one(OpKind.READ, 3, tier=FAR).status is OpStatus.CORRUPT
        assert server.call(b"EXISTS", name_of(3)) == 0


def test_other_ranks_are_not_to_look(server: RedisServer, tmp_path: Path) -> None:
    with pair(server, tmp_path, rank=1, local_ranks=2) as made:
        server.call(b"SET", name_of(3, rank=1), b"x")
        (answer,) = made.run(ask(made, 3))
        assert (answer.status, answer.found) == (OpStatus.OK, -1)


def test_a_probe_leaves_nothing_and_lists_nothing(server: RedisServer, tmp_path: Path) -> None:
    with pair(server, tmp_path) as made:
        scans = len(made.scans)
        assert made.one(OpKind.PROBE, tier=FAR, slot=-1).status is OpStatus.OK
        assert server.records() == []
        assert len(made.scans) == scans


@pytest.mark.parametrize("harm", ["server stops", "process stops", "process dies"])
def test_this_machines_tiers_go_on_whatever_becomes_of_the_store(
    server: RedisServer, tmp_path: Path, harm: str
) -> None:
    with pair(server, tmp_path) as made:
        made.fill(3)
        made.one(OpKind.WRITE, 3)
        made.one(OpKind.WRITE, 3, tier=FAR)
        _, far = both_alive(made)
        hung = [made.op(OpKind.READ, i, tier=FAR) for i in range(10, 30)]
        if harm == "server stops":
            server.stop()
        else:
            os.kill(far, signal.SIGSTOP if harm == "process stops" else signal.SIGKILL)
        made.submit(*hung, ask(made, 3))
        for _ in range(5):
            assert made.one(OpKind.READ, 3).status is OpStatus.OK
        if harm == "process stops":
            os.kill(far, signal.SIGCONT)
        made.until(lambda: all(op.op in made.results for op in hung), "the far reads are answered")
        server.go_on()


def test_a_queued_operation_of_either_is_cancelled_and_answered_once(
    server: RedisServer, tmp_path: Path
) -> None:
    with pair(server, tmp_path) as made:
        server.stop()
        reads = [made.op(OpKind.READ, i, tier=FAR) for i in range(10, 40)]
        cancels = [made.op(OpKind.CANCEL, tier=0, target=op.op) for op in reads]
        hasten = made.op(OpKind.HASTEN, tier=0, target=reads[0].op, priority=Priority.DEMAND)
        made.submit(*reads, hasten, *cancels)
        made.until(lambda: all(op.op in made.results for op in [*reads, *cancels]))
        statuses = [made.results[op.op].status for op in reads]
        assert statuses.count(OpStatus.CANCELLED) >= 10
        server.go_on()
