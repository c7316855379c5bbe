"""Hits whose last chunks are read while others are copied: whatever becomes of a late one, what is read is what was computed."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.request import Request, RequestStatus

from kvtier.brain import overlap
from kvtier.brain.cost import Pace
from kvtier.types import OpResult, OpStatus
from tests.connectors.no_model import NoModelEngine
from tests.connectors.test_caches import BLOCK, MODELS
from tests.engine.models import prompts
from tests.engine.scenarios import nvme
from tests.modes import tiny
from tests.patience import until

PROMPT, OTHER = prompts(2, 200, seed=21)
COPY_S = 0.4  # of a chunk, as the brain believes


FAILS = {"read_delay_s": 1.0, "read_errno": "EIO"}


@pytest.fixture(autouse=True)
def copies_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loads take as long as these copies seem to."""
    monkeypatch.setattr(overlap, "_MOST_S", 60.0)


class Believed(Pace):
    """Copies of which nobody learns how fast they are."""

    def steady(self) -> float:
        return COPY_S / (32 << 10)


class Late:
    """An engine that reads a prompt from a disk, and the faults of that disk."""

    def __init__(self, engine: NoModelEngine, control: Path) -> None:
        self.engine = engine
        self.control = control
        self.brain = engine.connector.scheduling.brain
        self.brain._state.costs.load = Believed(self.brain._state.clock)
        self.plans: list[Any] = []
        plan_load = self.brain.plan_load

        def planned(*args: Any) -> Any:
            self.plans.append(plan_load(*args))
            return self.plans[-1]

        self.brain.plan_load = planned

    def fail(self, **faults: object) -> None:
        new = self.control.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.replace(self.control)

    def queue(self, chunk: int, **faults: object) -> Request:
        """Ask for the prompt, of which the disk gives all but one chunk at once."""
        request = self.engine.queue(PROMPT)
        key = self.engine.connector.scheduling.statuses.keys(request.request_id)[0][chunk]
        self.fail(key=key.hex(), **faults)
        return request

    def loading(self, chunk: int, **faults: object) -> Request:
        """The same, until the hit is given and only that chunk is awaited."""
        request = self.queue(chunk, **faults)
        until(lambda: self.plans, "it has its hit", self.engine.step)
        assert chunk in self.plans[0].reads
        until(lambda: self.waiting <= 1, "the others are here", self.engine.step)
        assert self.waiting == 1, "it is given up"
        return request

    @property
    def waiting(self) -> int:
        """How many chunks the rank waits for that waits for most."""
        return max(len(w.rank.worker._landings._waiting) for w in self.engine.workers)

    def finish(self, request: Request) -> None:
        """Run to the end of a request. The engine itself compares what each step reads."""
        until(request.is_finished, "it ends", self.engine.step)


def started(folder: Path, **options: Any) -> tuple[NoModelEngine, Path]:
    """Start an engine that finds the prompts on a disk."""
    model, control = MODELS["full attention"], folder / "control.json"
    control.write_text("{}")
    faulty: Any = [{"kind": "faulty", "control": str(control)}]
    kvtier = nvme(folder / "kv", dram_capacity="4MiB", write="through", wrappers=faulty)
    kvtier |= {"chunk_tokens": 2 * BLOCK, "overlap": True}
    tiny_model = tiny.make(folder, model.family)
    with closing(NoModelEngine(tiny_model, model.specs, kvtier, blocks=128, **options)) as first:
        first.settle()
        first.ask(PROMPT, OTHER)
        first.settle()
    made = NoModelEngine(tiny_model, model.specs, kvtier, blocks=128, **options)
    made.settle()
    return made, control


@pytest.fixture(params=[{}, {"tensor_parallel_size": 2}], ids=["one rank", "two"])
def late(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Late]:
    engine, control = started(tmp_path, **request.param)
    with closing(engine):
        made = Late(engine, control)
        yield made
        made.fail()
        engine.settle()
        made.brain.check()
        stats = made.brain.stats()
        assert stats.pinned == stats.reading == stats.quarantined_slots == 0
        assert not engine.connector.scheduling.guard.broken
        assert not any(worker.rank.guard.broken for worker in engine.workers)
        assert not any(worker.rank.worker._landings for worker in engine.workers)


def test_all_that_lands_late_is_used(late: Late) -> None:
    request = late.loading(4, read_delay_s=1.0)
    late.finish(request)
    assert late.engine.cached(request) == 192


@pytest.mark.parametrize(
    ("chunk", "fault"),
    [(0, FAILS), (3, FAILS), (5, FAILS), (3, {"hang": True})],
    ids=["first", "middle", "last", "hangs"],
)
def test_a_chunk_that_does_not_come_is_computed(
    late: Late, chunk: int, fault: dict[str, object]
) -> None:
    request = late.loading(chunk, **fault)
    late.finish(request)
    assert late.engine.cached(request) == 32 * chunk
    late.fail()
    late.engine.reset()
    assert late.engine.ask(PROMPT) == [192], "nothing else was lost"


def test_others_go_on_and_share_what_came(late: Late) -> None:
    request = late.loading(4, hang=True)
    sharer = late.engine.queue(PROMPT)
    assert late.engine.ask(OTHER) == [192]
    late.finish(request)
    late.finish(sharer)
    assert late.engine.cached(sharer) >= 128


def test_an_abort_while_a_chunk_is_awaited(late: Late) -> None:
    request = late.loading(4, hang=True)
    late.engine.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
    late.brain.check()
    assert late.engine.ask(OTHER) == [192]
    late.fail()
    assert late.engine.ask(PROMPT) == [192]


@pytest.mark.parametrize("running", [False, True])
def test_a_reset_while_a_chunk_is_awaited(late: Late, running: bool) -> None:
    request = late.loading(4, hang=True)
    connector = late.engine.connector
    connector.reset_cache()
    late.engine.step()
    late.finish(request)
    assert late.engine.cached(request) == 0
    late.fail()
    if running:
        late.engine.settle()
    assert late.engine.ask(OTHER) == [0]


def test_the_io_process_dies_while_a_chunk_is_awaited(late: Late) -> None:
    request = late.loading(2, hang=True)
    for worker in late.engine.workers:
        io: Any = worker.rank.worker.io
        os.kill(io.pid, signal.SIGKILL)
    late.fail()
    late.finish(request)
    assert late.engine.cached(request) == 64


def test_a_rank_that_fails_alone(late: Late) -> None:
    """The others have copied the chunk: it is computed by all."""
    landings = late.engine.workers[-1].rank.worker._landings
    poll, awaited = landings._poll, set[int]()

    def failing() -> list[Any]:
        return [
            a._replace(status=OpStatus.ERROR) if isinstance(a, OpResult) and a.op in awaited else a
            for a in poll()
        ]

    landings._poll = failing
    request = late.loading(3, read_delay_s=1.0)
    awaited.add(late.plans[0].reads[3])
    late.finish(request)
    assert late.engine.cached(request) == 96


def test_a_rank_that_turns_itself_off_waits_for_nothing(tmp_path: Path) -> None:
    engine, control = started(tmp_path)
    with closing(engine):
        late = Late(engine, control)
        request = late.loading(3, hang=True)

        def breaks() -> None:
            raise RuntimeError("a bug")

        landings: Any = engine.workers[0].rank.worker._landings
        landings.hear = breaks
        late.finish(request)
        assert engine.workers[0].rank.guard.broken
        late.fail()


def test_models_of_windows_wait_for_all_of_a_hit(tmp_path: Path) -> None:
    for name in ("windows", "states alone", "windows and full attention"):
        model = MODELS[name]
        folder = tmp_path / name
        folder.mkdir()
        kvtier = nvme(folder / "kv", dram_capacity="4MiB", write="through")
        kvtier |= {"chunk_tokens": 2 * BLOCK, "overlap": True}
        made = NoModelEngine(tiny.make(folder, model.family), model.specs, kvtier, blocks=128)
        with closing(made):
            made.settle()
            assert not made.connector.scheduling.brain._overlap._enabled
