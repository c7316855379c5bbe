"""A burst costs every step a little: who is looked up when, and that nobody starves."""

from typing import Any

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.lookups import Lookups
from kvtier.connectors.vllm.statuses import Statuses
from tests.connectors import scheduler
from tests.connectors.scheduler import Traffic


class Queue:
    """A queue whose lookups take a millisecond each."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lookups = Lookups(lambda: self.now)

    def step(
        self,
        names: list[str],
        *,
        deferred: bool = False,
        seconds: float = 1e-3,
        theirs: float = 0.0,
    ) -> list[str]:
        """Ask for all, which costs vLLM `theirs` each; return who was looked up."""
        looked = []
        for name in names:
            self.now += theirs
            if not self.lookups.waits(name, 0):
                self.now += seconds
                self.lookups.looked(name, 0, deferred=deferred)
                looked.append(name)
        self.lookups.ordered()
        return looked


def test_a_step_looks_up_as_many_as_its_time_allows() -> None:
    queue, names = Queue(), list("abcdef")
    assert queue.step(names) == ["a", "b"]
    assert queue.step(names[2:]) == ["c", "d"], "in order"
    queue.now += 0.1
    queue.lookups.output()  # of a step of 0.1 s
    assert len(queue.step([f"r{i}" for i in range(20)])) == 10


def test_who_costs_vllm_more_than_a_lookup_is_not_turned_away() -> None:
    """A burst over a prefix that is on the device: vLLM looks all of it up, for everybody, in every step."""
    queue, names = Queue(), [f"r{i}" for i in range(40)]
    assert queue.step(names, theirs=2e-3) == names
    queue.step([])
    assert len(queue.step([f"s{i}" for i in range(40)], theirs=0.25e-3)) == 10, "as long as vLLM"


def test_who_was_never_looked_up_is_not_behind_those_who_were() -> None:
    queue, old, new = Queue(), list("abcd"), list("wxyz")
    queue.step(old[:2])
    queue.step(old[2:])
    assert queue.step(old + new) == ["a", "b", "w"], "one of each kind at least"
    assert queue.step(old + new[1:]) == ["a", "x"], "half of the time is theirs"
    queue.step([])
    assert queue.step(old) == ["a", "b"], "where nobody new is turned away all of it is"


@pytest.mark.parametrize("seconds", [1e-3, 1.0])
def test_nobody_starves(seconds: float) -> None:
    queue, left = Queue(), [f"r{i}" for i in range(20)]
    for _ in range(20):
        looked = queue.step(left, seconds=seconds)
        left = [name for name in left if name not in looked]
    assert not left


def test_who_waits_for_a_load_is_looked_up_when_one_has_ended() -> None:
    queue = Queue()
    assert queue.step(["a"], deferred=True) == ["a"]
    assert queue.step(["a"]) == []
    assert not queue.lookups.waits("a", 16), "the device has more of it"
    queue.step(["a"], deferred=True)
    queue.lookups.ended()
    assert queue.step(["a"]) == ["a"]
    assert queue.step(["a"], deferred=True) == ["a"]
    queue.lookups.forget("a")
    assert queue.step(["a"]) == ["a"]


def test_sharers_of_a_load_are_not_looked_up_step_by_step() -> None:
    engine = scheduler.engine(blocks=4000, chunk_tokens=32, slots=400, load_steps=10)
    engine.add("first", 3216, prefix="p", shared=3200)
    engine.settle()
    engine.abort(["first"])
    engine.settle()
    engine.scheduler.reset_prefix_cache()
    stats = engine.connector.scheduling.brain.stats
    before = stats().lookups
    for i in range(50):
        engine.add(f"r{i}", 3232, prefix="p", shared=3200)
    engine.run(8)
    assert stats().loads == 100
    assert stats().lookups - before < 300, (
        "each of 50 sharers looks at 100 chunks in each of 8 steps"
    )
    engine.settle()
    assert len(engine.scheduler.running) == 50


@pytest.mark.parametrize("options", [{}, {"window": 96}, {"eagle": True}, {"blocks": 200}], ids=str)
def test_the_same_traffic_is_decided_the_same(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"blocks": 600, "chunk_tokens": 32, "slots": 150, "batched_tokens": 512, "max_seqs": 64}
    seen = []
    for mended in (True, False):
        if not mended:
            monkeypatch.setattr(Statuses, "shares_load", lambda *_: False)
            monkeypatch.setattr(Lookups, "waits", lambda *_: False)
        engine = scheduler.engine(**small | options, load_steps=4)
        assert isinstance(engine.connector, KVTierConnector)
        traffic = Traffic(engine)
        traffic.run(400)
        assert not engine.connector.scheduling.guard.broken
        stats = scheduler.counted(engine.connector.scheduling.brain.stats())
        lookups, stats.lookups = stats.lookups, 0
        seen.append((traffic.jobs, stats, lookups))
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] == seen[1][1]
    assert seen[0][2] <= seen[1][2]
