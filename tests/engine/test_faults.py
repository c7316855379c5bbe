"""Faults of storage under the real engine: the answer is always vLLM's own, and a counter says what it was."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.engine import damage
from tests.engine.conftest import EngineFactory
from tests.engine.damage import DAMAGES
from tests.engine.faults import FILLER
from tests.engine.rig import (
    ASKED,
    CHUNK,
    COMMON,
    EVERY,
    LONG,
    SHARED,
    SLOT,
    Disk,
    Rig,
    config,
    rig,
)
from tests.engine.scenarios import TOKENS, Reference
from tests.patience import until

ASKED_OF_LLAMA = EVERY


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, after_engines: ExitStack) -> Disk:
    made = Disk(tmp_path_factory.mktemp("faults"))
    after_engines.callback(made.close)
    return made


@pytest.fixture
def bad(engine: EngineFactory, llama: Path, disk: Disk, reference: Reference) -> Iterator[Rig]:
    yield from rig(engine, config(llama, disk), disk, reference)


# What was written is not what is read.


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_record_is_a_miss_that_heals(bad: Rig, name: str) -> None:
    what, prompt = DAMAGES[name], ASKED[0]
    bad.stored(prompt)
    records = damage.in_order(bad.disk.records())
    assert len(records) == 8, "this prompt's alone"
    failed = bad.failures(what.cause)
    what.do(records)
    assert bad.cached(prompt) == what.left
    assert bad.failures(what.cause) == failed + what.count
    bad.cool()
    assert damage.in_order(bad.disk.records()) == records, "written again"
    bad.disk.assert_whole()
    assert bad.cached(prompt) == 8


def test_a_forged_record_changes_the_answer(bad: Rig) -> None:
    """What the checksums are for; and these tests do see KV that is wrong."""
    prompt = ASKED[13]
    records = bad.stored(prompt)
    damage.forge(records[3])
    (answer,) = bad.engine.answers([prompt], TOKENS)
    assert answer.cached == 8 * CHUNK
    assert answer.tokens != bad.reference.of([prompt])[0]
    bad.cool()
    damage.flip(records[3], 100)
    assert bad.cached(prompt) == 3


# The disk says no.


def rests_and_recovers(bad: Rig, trips: float) -> None:
    """Take the fault away: a probe finds out, and the disk serves again."""
    bad.disk.fail()
    assert bad.count("tier_trips_total") > trips
    bad.settle()
    assert bad.count("tier_resting") == 0


def test_failing_reads_rest_the_disk_until_a_probe_succeeds(bad: Rig) -> None:
    bad.stored(ASKED[1])
    trips, failed = bad.count("tier_trips_total"), bad.failures("error")
    bad.disk.fail(read_errno="EIO")
    assert bad.cached(ASKED[1]) == 0
    assert bad.failures("error") == failed + 8
    assert bad.count("tier_resting") == 1
    assert bad.engine.reset()
    assert bad.cached(ASKED[1]) == 8, "from DRAM, while the disk rests"
    rests_and_recovers(bad, trips)
    bad.cool()
    assert bad.cached(ASKED[1]) == 8


def writes_fail_and_dram_goes_on(bad: Rig, prompt: list[int]) -> float:
    """Serve a new prompt that cannot be written; return the trips of before."""
    trips, failed, before = (
        bad.count("tier_trips_total"),
        bad.failures("error"),
        bad.disk.records(),
    )
    assert bad.cached(prompt) == 0
    bad.wait_for("tier_trips_total", trips)
    assert bad.failures("error") >= failed + 5
    assert bad.disk.records() <= before, "nothing new; what was to be removed may have gone"
    assert bad.engine.reset()
    assert bad.cached(prompt) == 8, "from DRAM"
    return trips


def test_failing_writes_leave_dram_at_work(bad: Rig) -> None:
    bad.disk.fail(write_errno="EIO")
    trips = writes_fail_and_dram_goes_on(bad, ASKED[2])
    rests_and_recovers(bad, trips)
    assert len(bad.stored(ASKED[2])) == 8
    assert bad.cached(ASKED[2]) == 8


def test_a_full_disk(bad: Rig) -> None:
    trips, failed = bad.count("tier_trips_total"), bad.failures("no_room")
    bad.disk.fill(left=SLOT)
    try:
        assert bad.cached(ASKED[3]) == 0
        step = partial(bad.engine.generate, [FILLER], 1)
        until(lambda: bad.failures("no_room") > failed, "a write finds no room", step)
        assert bad.disk.partial() == []
        assert bad.engine.reset()
        assert bad.cached(ASKED[3]) == 8, "from DRAM"
    finally:
        bad.disk.free()
    assert bad.count("tier_short_bytes") > 0
    assert bad.count("tier_trips_total") == trips, "nothing is wrong with the disk"


def test_what_was_removed_with_its_directory_counts_no_more(bad: Rig) -> None:
    bad.stored(ASKED[5])
    trips = bad.count("tier_trips_total")
    for path in bad.disk.path.iterdir():
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    assert bad.cached(ASKED[6]) == 0
    bad.wait_for("tier_trips_total", trips)
    bad.settle()
    assert bad.count("tier_used_bytes") == bad.disk.weigh()
    assert bad.count("tier_chunks") == len(bad.disk.records()) <= 8
    assert len(bad.stored(ASKED[5])) >= 8, "and what could not be written before"


def test_a_limit_on_file_sizes(bad: Rig) -> None:
    """Writes break off in the middle, and probes, which are small, succeed all the while."""
    pid = bad.io_pid()
    assert pid is not None
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE, (SLOT // 2, resource.RLIM_INFINITY))
    try:
        trips = writes_fail_and_dram_goes_on(bad, ASKED[4])
        bad.settle()
        assert bad.disk.partial() == []
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    rests_and_recovers(bad, trips)
    assert len(bad.stored(ASKED[4])) == 8


# The disk says nothing.


def test_a_read_past_its_deadline_is_a_shorter_hit(bad: Rig) -> None:
    """The read of one record hangs, the others are quick."""
    bad.disk.fail(hang=True, key=bad.stored(LONG)[9].stem)
    late = bad.count("load_refusals_total", reason="late")
    assert bad.cached(LONG) == 9
    assert bad.count("load_refusals_total", reason="late") == late + 1
    assert bad.count("reading_chunks") == 1
    bad.disk.fail()
    bad.settle()
    bad.cool()
    assert bad.cached(LONG) == 16


def test_reads_that_take_their_time_are_waited_for(bad: Rig) -> None:
    bad.cool()
    bad.disk.fail(read_delay_s=0.1)
    assert bad.cached(LONG) == 16


def test_hung_reads_delay_nobody_else(bad: Rig) -> None:
    """Neither a new prompt, nor one in DRAM, nor one that shares a prefix that is there."""
    hungry, sharer, new, resident = SHARED[0], SHARED[1], ASKED[11], ASKED[12]
    bad.stored(hungry)
    bad.ask(COMMON, resident)
    bad.settle()
    assert bad.engine.reset()
    late = bad.count("load_refusals_total", reason="late")
    bad.disk.fail(hang=True)
    bad.trust()
    bad.engine.add("hungry", hungry, TOKENS)
    bad.engine.step()
    asked = {"new": new, "resident": resident, "sharer": sharer}
    for name, prompt in asked.items():
        bad.engine.add(name, prompt, 4)
    seen: dict[str, list[int]] = {}
    # The queue is looked up by turns; then come two steps for all prompts, and four tokens.
    for _ in range(40):
        for name, answer in bad.engine.step().items():
            seen[name] = answer.tokens
    for name, prompt in asked.items():
        assert seen[name] == bad.reference.of([prompt])[0][:4], name
    (answer,) = bad.engine.drain().values()
    assert answer.tokens == bad.reference.of([hungry])[0]
    assert answer.cached == 8 * CHUNK, "what DRAM had"
    assert bad.count("load_refusals_total", reason="late") == late + 1
    bad.engine.call("tests.engine.faults:check_brain")
    assert bad.count("reading_chunks") == 4, "they hang on"
    assert bad.cached(hungry) == 12, "computed meanwhile"
    bad.disk.fail()
    bad.cool()
    assert bad.cached(hungry) == 12


def test_a_disk_that_hangs_is_waited_for_once(bad: Rig) -> None:
    for prompt in ASKED[8:11]:
        bad.stored(prompt)
    trips = bad.count("tier_trips_total")
    bad.disk.fail(hang=True)
    assert [answer.cached for answer in bad.ask(*ASKED[8:10])] == [0, 0]
    late = bad.count("load_refusals_total", reason="late")
    assert bad.cached(ASKED[10]) == 0
    assert bad.count("load_refusals_total", reason="late") == late, (
        "nothing is read from a disk that rests"
    )
    bad.engine.call("tests.engine.faults:check_brain")
    rests_and_recovers(bad, trips)
    bad.cool()
    assert bad.cached(ASKED[8]) == 8


# DRAM says something else.


def test_garbage_in_dram_changes_the_answer(bad: Rig) -> None:
    """Tier 0 is trusted: a copy that went wrong would show in every test of identity."""
    prompt = ASKED[0]
    bad.cached(prompt)
    bad.settle()
    assert bad.engine.reset()
    bad.scribble()
    (answer,) = bad.engine.answers([prompt], TOKENS)
    assert answer.cached == 8 * CHUNK
    assert answer.tokens != bad.reference.of([prompt])[0]
    assert bad.engine.reset(connector=True)
    assert bad.cached(prompt) == 0, "a reset forgets it all"


def test_an_engine_leaves_although_its_disk_hangs(bad: Rig) -> None:
    bad.stored(ASKED[7])
    bad.disk.fail(hang=True)
    bad.engine.add("hungry", ASKED[7], TOKENS)
    bad.engine.step()
    bad.engine.close()
    assert bad.disk.partial() == []
