"""Operations through a real I/O process: what is asked is done, once, in order, in time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier.io_process.record import namespace_of
from kvtier.types import OpKind, OpStatus, Priority
from tests.io_process.rig import GROUP_NBYTES, MANIFEST, Rig, file_tier, key_of, rewrite, rig


@pytest.fixture(params=["raw", "zstd"])
def io(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with rig([file_tier(tmp_path / "kv", request.param)]) as made:
        yield made


def write(io: Rig, *numbers: int) -> None:
    for number in numbers:
        io.fill(number)
    assert {r.status for r in io.run(*[io.op(OpKind.WRITE, n) for n in numbers])} == {OpStatus.OK}


def test_every_chunk_comes_back_in_its_slot_and_nowhere_else(io: Rig) -> None:
    chunks = [io.fill(i) for i in range(20)]
    written = io.run(*[io.op(OpKind.WRITE, i, end_token=16 * i) for i in range(20)])
    io.arena.slot(0)[:] = 0
    read = io.run(*[io.op(OpKind.READ, i, slot=40 - i) for i in range(20)])
    assert {r.status for r in written + read} == {OpStatus.OK}
    assert [r.nbytes for r in written] == [r.nbytes for r in read]
    assert all(r.nbytes % 4096 == 0 for r in written)
    for i, chunk in enumerate(chunks):
        assert np.array_equal(io.arena.slot(40 - i)[: len(chunk)], chunk)
    assert not io.arena.slot(50).any()


def test_groups_have_their_own_length(io: Rig) -> None:
    chunk = io.fill(0, group=1)
    io.arena.slot(0)[GROUP_NBYTES[1] :] = 7
    assert io.one(OpKind.WRITE, group=1).status is OpStatus.OK
    assert io.one(OpKind.READ, slot=1, group=1).status is OpStatus.OK
    assert np.array_equal(io.arena.slot(1)[: len(chunk)], chunk)
    assert not io.arena.slot(1)[GROUP_NBYTES[1] :].any()
    assert io.one(OpKind.READ, slot=1, group=0).status is OpStatus.CORRUPT


def test_what_does_not_shrink_is_stored_raw(io: Rig) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 20000, dtype=np.uint8)
    io.arena.slot(0)[:20000] = noise
    assert io.one(OpKind.WRITE).nbytes == 4096 + 20480
    assert io.one(OpKind.READ, slot=1).status is OpStatus.OK
    assert np.array_equal(io.arena.slot(1)[:20000], noise)


def test_absent_is_missing_and_removed_is_absent(io: Rig) -> None:
    assert io.one(OpKind.READ, 1).status is OpStatus.MISSING
    write(io, 1)
    assert io.one(OpKind.REMOVE, 1).status is OpStatus.OK
    assert io.one(OpKind.REMOVE, 1).status is OpStatus.OK
    assert io.one(OpKind.READ, 1).status is OpStatus.MISSING


def test_nonsense_is_an_error_and_no_more(io: Rig) -> None:
    for fields in (
        {"slot": 64},
        {"slot": -1},
        {"group": 5},
        {"tier": 0},
        {"tier": 2},
        {"key": b""},
    ):
        assert io.one(OpKind.WRITE, **fields).status is OpStatus.ERROR, fields
    write(io, 1)


def test_probe(io: Rig) -> None:
    assert io.one(OpKind.PROBE).status is OpStatus.OK
    assert io.one(OpKind.CANCEL, target=12345).status is OpStatus.OK


def test_reset_makes_all_unreachable(io: Rig) -> None:
    write(io, 1)
    assert io.one(OpKind.RESET, text="next").status is OpStatus.OK
    assert io.one(OpKind.READ, 1).status is OpStatus.MISSING
    write(io, 2)
    assert io.one(OpKind.READ, 2).status is OpStatus.OK
    assert io.one(OpKind.RESET, text=MANIFEST).status is OpStatus.OK
    assert {r.status for r in io.run(io.op(OpKind.READ, 1), io.op(OpKind.READ, 2))} == {
        OpStatus.MISSING
    }


def test_write_behind_is_paced_until_somebody_needs_it(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path)], idle_write_bytes_per_s=1) as io:
        for i in range(3):
            io.fill(i)
        first, second, third = (io.op(OpKind.WRITE, i, priority=Priority.IDLE) for i in range(3))
        io.submit(first, second, third)
        io.until(lambda: first.op in io.results)
        assert io.one(OpKind.WRITE, 5, priority=Priority.WRITE).status is OpStatus.OK
        io.submit(io.op(OpKind.HASTEN, target=second.op, priority=Priority.WRITE))
        io.until(lambda: second.op in io.results)
        assert io.one(OpKind.CANCEL, target=third.op).status is OpStatus.OK
        assert io.results[third.op].status is OpStatus.CANCELLED


@pytest.mark.parametrize("codecs", [("raw", "zstd"), ("zstd", "raw")])
def test_a_restart_lists_and_serves_whatever_the_codec_is_now(
    tmp_path: Path, codecs: tuple[str, str]
) -> None:
    with rig([file_tier(tmp_path / "kv", codecs[0])]) as io:
        assert [batch.keys for batch in io.scans] == [[]]
        write(io, *range(10))
        chunk = io.fill(5)
    with rig([file_tier(tmp_path / "kv", codecs[1])]) as io:
        assert sorted(io.scans[0].keys) == [key_of(i) for i in range(10)]
        assert {batch.op for batch in io.scans} == {1}
        read = io.one(OpKind.READ, 5, slot=0)
        assert read.status is OpStatus.OK
        assert io.scans[0].nbytes == [read.nbytes] * 10
        assert np.array_equal(io.arena.slot(0)[: len(chunk)], chunk)


def test_foreign_bytes_are_reported_and_reclaimed(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path / "kv")]) as io:
        write(io, 1, 2)
    with rig([file_tier(tmp_path / "kv")], open_now=False) as io:
        assert io.open("another model").nbytes >= 2 * 24576
        assert io.one(OpKind.RECLAIM, nbytes=1).nbytes == 0


def test_nothing_runs_before_open_and_probe_heals_a_failed_open(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path / "kv")], open_now=False) as io:
        assert io.one(OpKind.READ).error == "nvme: read: no namespace is open"
        namespace = tmp_path / "kv" / namespace_of(MANIFEST)
        namespace.write_text("in the way")
        assert io.one(OpKind.OPEN, text=MANIFEST).status is OpStatus.ERROR
        assert io.one(OpKind.PROBE).status is OpStatus.ERROR
        namespace.unlink()
        assert io.one(OpKind.PROBE).status is OpStatus.MISSING, "well, and nothing there"
        io.until(lambda: io.scans)
        write(io, 1)


@pytest.fixture
def control(tmp_path: Path) -> Path:
    """The control file of a FaultyTier."""
    return tmp_path / "control.json"


@pytest.fixture
def faulty(tmp_path: Path, control: Path) -> Iterator[Rig]:
    wrapper = {"kind": "faulty", "options": {"control": str(control)}}
    with rig([file_tier(tmp_path / "kv", wrappers=[wrapper])], threads=4) as made:
        yield made
        rewrite(control, {})


def hang(io: Rig, control: Path, *numbers: int, kind: OpKind = OpKind.READ) -> list[int]:
    """Start operations that hang; they were taken when the answer to a later CANCEL of them is here."""
    rewrite(control, {"hang": True})
    ops = [io.op(kind, number, priority=Priority.WRITE) for number in numbers]
    io.submit(*ops)
    return [op.op for op in ops]


def test_errors_of_the_medium_are_answers(faulty: Rig, control: Path) -> None:
    write(faulty, 1)
    rewrite(control, {"read_errno": "EIO", "write_errno": "ENOSPC"})
    assert "EIO" in faulty.one(OpKind.READ, 1).error
    assert "ENOSPC" in faulty.one(OpKind.WRITE, 2).error
    assert faulty.one(OpKind.PROBE).status is OpStatus.ERROR
    rewrite(control, {})
    assert faulty.one(OpKind.PROBE).status is OpStatus.OK
    assert faulty.one(OpKind.READ, 1).status is OpStatus.OK


def test_queued_reads_expire_and_are_cancelled_while_every_thread_hangs(
    faulty: Rig, control: Path
) -> None:
    hung = hang(faulty, control, *range(10), kind=OpKind.WRITE)
    late = faulty.op(OpKind.READ, 3, deadline_s=0.05, priority=Priority.PREFETCH)
    behind = [faulty.op(OpKind.READ, 3, deadline_s=60.0) for _ in range(6)]
    faulty.submit(*behind, late)
    faulty.until(lambda: late.op in faulty.results)
    assert faulty.results[late.op].status is OpStatus.DEADLINE
    assert not set(hung) & set(faulty.results)
    cancelled = behind[-1]
    assert faulty.one(OpKind.CANCEL, target=cancelled.op).status is OpStatus.OK
    assert faulty.results[cancelled.op].status is OpStatus.CANCELLED
    rewrite(control, {})
    faulty.until(lambda: not faulty.client.pending)
    assert {faulty.results[op].status for op in hung} == {OpStatus.OK}


def test_a_hung_tier_does_not_stop_another(tmp_path: Path, control: Path) -> None:
    wrapper = {"kind": "faulty", "options": {"control": str(control)}}
    sick = file_tier(tmp_path / "a", wrappers=[wrapper])
    well = file_tier(tmp_path / "b", name="well")
    with rig([sick, well]) as io:
        io.one(OpKind.OPEN, tier=2, text=MANIFEST)
        hung = hang(io, control, *range(20))
        assert io.one(OpKind.WRITE, 1, tier=2).status is OpStatus.OK
        assert io.one(OpKind.READ, 1, tier=2).status is OpStatus.OK
        assert not set(hung) & set(io.results)
        rewrite(control, {})
        io.until(lambda: not io.client.pending)


def test_reset_answers_what_was_queued_and_lets_nothing_old_through(
    faulty: Rig, control: Path, tmp_path: Path
) -> None:
    hung = hang(faulty, control, *range(10), kind=OpKind.WRITE)
    assert faulty.one(OpKind.RESET, text="next").status is OpStatus.OK
    after = faulty.op(OpKind.WRITE, 30)
    faulty.fill(30)
    faulty.submit(after)
    assert sum(
        faulty.results[op].status is OpStatus.CANCELLED for op in hung if op in faulty.results
    )
    rewrite(control, {})
    faulty.until(lambda: not faulty.client.pending)
    assert faulty.results[after.op].status is OpStatus.OK
    for number in range(10):
        assert faulty.one(OpKind.READ, number).status is not OpStatus.OK


def test_more_than_the_queue_is_refused_at_once(tmp_path: Path, control: Path) -> None:
    wrapper = {"kind": "faulty", "options": {"control": str(control)}}
    with rig([file_tier(tmp_path / "kv", wrappers=[wrapper])], queue=8) as io:
        hung = hang(io, control, *range(8))
        refused = [io.op(OpKind.READ, i) for i in range(5)]
        found = io.run(*refused)
        assert {r.error for r in found} == {"queue full"}
        assert {r.status for r in found} == {OpStatus.CANCELLED}, "no fault of the tier"
        removes = [io.op(OpKind.REMOVE, 40 + i) for i in range(12)]
        io.submit(*removes)
        io.until(lambda: sum(r.error == "queue full" for r in io.results.values()) == 9)
        rewrite(control, {})
        io.until(lambda: not io.client.pending)
        assert set(hung) <= set(io.results)
        assert len(io.results) == len(hung) + len(refused) + len(removes) + 1  # and OPEN
