"""The books of prompts add up to what vLLM itself gives out, request by request."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.metrics.stats import PrefillStats

from kvtier.brain import Why
from kvtier.connectors.vllm.live import LiveRequest
from kvtier.connectors.vllm.permissions import Permission
from kvtier.connectors.vllm.prompts import Prompts, _parts
from kvtier.types import BlockKey
from tests.connectors import scheduler

KEYS = [BlockKey(b"%d" % i) for i in range(6)]


class Theirs:
    """What vLLM counts: the figures that it gives out with first outputs."""

    def __init__(self, engine: Any) -> None:
        self.tokens = Counter[str]()
        self._update = engine.scheduler.update_from_output
        engine.scheduler.update_from_output = self.update

    def update(self, *args: Any) -> Any:
        outputs = self._update(*args)
        for each in outputs.values():
            for output in each.outputs:
                if (found := output.prefill_stats) is not None:
                    self.tokens["all"] += found.num_prompt_tokens
                    self.tokens["hbm"] += found.num_local_cached_tokens
                    self.tokens["ours"] += found.num_external_cached_tokens
                    self.tokens["computed"] += found.num_computed_tokens
        return outputs


def test_they_agree_over_traffic_with_aborts_and_empty_devices() -> None:
    engine = scheduler.engine(blocks=250, chunk_tokens=32, slots=60)
    theirs = Theirs(engine)
    for name in "abcdea":  # each prefix takes a third of DRAM's room, and the last one was evicted
        for _ in range(2):
            engine.add(f"{name}{engine._steps}", 700, prefix=name, shared=640, max_tokens=2)
            engine.settle()
            assert engine.scheduler.reset_prefix_cache()
    scheduler.Traffic(engine, seed=3).run(150)
    stats = engine.connector.scheduling.prompts.stats
    tokens = stats.tokens
    assert theirs.tokens["ours"] > 0
    assert (tokens["hbm"], tokens["dram"], tokens["computed"], tokens["other"]) == (
        theirs.tokens["hbm"],
        theirs.tokens["ours"],
        theirs.tokens["computed"],
        0,
    )
    assert sum(tokens.values()) == theirs.tokens["all"]
    assert sum(stats.misses.values()) == tokens["computed"]
    assert stats.misses[Why.EVICTED] > 0
    assert stats.misses[Why.FAILED] == 0


def test_they_agree_once_kvtier_is_off() -> None:
    engine = scheduler.engine(blocks=600, chunk_tokens=32, slots=300)
    theirs = Theirs(engine)
    traffic = scheduler.Traffic(engine, seed=4)
    traffic.run(100)
    side = engine.connector.scheduling
    side.guard.trip("a test")
    before = side.prompts.stats.misses[Why.OFF]
    traffic.run(100)
    stats = side.prompts.stats
    assert sum(stats.tokens.values()) == theirs.tokens["all"]
    assert sum(stats.misses.values()) == stats.tokens["computed"]
    assert stats.misses[Why.OFF] > before == 0


def request(name: str = "a", *, prompt: int, local: int, external: int) -> Any:
    figures = PrefillStats()
    figures.set(prompt, local, external)
    return SimpleNamespace(
        request_id=name,
        prefill_stats=figures,
        num_preemptions=0,
        num_computed_tokens=0,
        arrival_time=90.0,
        kv_transfer_params=None,
    )


def live(*, below: dict[BlockKey, int]) -> LiveRequest:
    made = LiveRequest(Permission(), [])
    made.below = below
    made.loads = [(key, 10 * (i + 1)) for i, key in enumerate(KEYS)]
    return made


def books() -> Prompts:
    made = Prompts(clock=lambda: 100.0)
    made.show(["hot", "warm", "cold"])
    made.pace = 0.5
    return made


def test_a_hit_is_split_by_the_tiers_that_had_it() -> None:
    found = live(below={KEYS[2]: 2, KEYS[3]: 2, KEYS[4]: 1})
    assert _parts(5, 60, found) == [(5, 20, 0), (20, 40, 2), (40, 50, 1), (50, 60, 0)]
    assert _parts(35, 45, found) == [(35, 40, 2), (40, 45, 1)]
    assert _parts(35, 35, found) == []
    found.loads = found.loads[3:]  # a window: what is before its chunks comes with the first
    assert _parts(0, 60, found) == [(0, 40, 2), (40, 50, 1), (50, 60, 0)]


def test_a_load_that_fails_is_computed_from_there_on() -> None:
    made, asked = books(), request(prompt=70, local=5, external=55)
    made.admit(asked, 55, live(below={KEYS[2]: 2, KEYS[3]: 2}), Why.OPENING)
    made.lost("a", 30)
    made.settle()
    assert not any(made.stats.tokens.values()), "its first output is to come"
    asked.prefill_stats = None
    made.settle()
    made.settle()
    counted = {name: n for name, n in made.stats.tokens.items() if n}
    assert counted == {"hbm": 5, "hot": 15, "cold": 10, "computed": 40}
    assert made.stats.misses == {Why.FAILED: 30, Why.OPENING: 10}
    assert made.stats.saved == {"hot": 7.5, "warm": 0, "cold": 5.0}
    assert made.stats.ttft["cold"] == [10.0]


def test_who_asks_for_a_report_is_told_the_same_as_the_metrics() -> None:
    made, asked = books(), request(prompt=70, local=5, external=55)
    asked.kv_transfer_params = {"kvtier": {"report": True}}
    made.timer = iter([10.0, 10.25]).__next__
    made.waits("a")
    made.admit(asked, 55, live(below={KEYS[2]: 2, KEYS[3]: 2}), Why.OPENING)
    made.lost("a", 30)
    asked.prefill_stats = None
    made.settle()
    told = made.finished("a")
    tokens = {"computed": 40, "hbm": 5, "hot": 15, "warm": 0, "cold": 10}
    assert told == {"tokens": tokens, "wait_ms": 250.0, "why": "failed"}
    assert made.finished("a") is None, "it is told once"


@pytest.mark.parametrize("params", [None, {}, {"kvtier": {"report": False}}, {"kvtier": 3}])
def test_who_does_not_ask_is_told_nothing(params: object) -> None:
    made, asked = books(), request(prompt=70, local=5, external=0)
    asked.kv_transfer_params = params
    made.admit(asked, 0, None, Why.OFF)
    asked.prefill_stats = None
    assert made.finished("a") is None
    assert not made._reports


def test_of_who_ends_early_nothing_stays() -> None:
    made, asked = books(), request(prompt=70, local=5, external=0)
    asked.kv_transfer_params = {"kvtier": {"report": True}}
    made.waits("a")
    assert made.finished("a") is None, "it was never admitted"
    made.waits("a")
    made.admit(asked, 0, None, Why.OFF)
    assert made.finished("a") is None, "it has no output"
    assert (made._waiting, made._open, made._reports) == ({}, {}, {})


def test_what_another_connector_brought_is_not_ours() -> None:
    made, asked = books(), request(prompt=70, local=5, external=55)
    made.admit(asked, 0, None, Why.OFF)
    asked.prefill_stats = None
    made.finished("a")
    assert made.stats.tokens == {
        "hbm": 5,
        "hot": 0,
        "warm": 0,
        "cold": 0,
        "other": 55,
        "computed": 10,
    }


def test_only_what_vllm_counts_is_counted() -> None:
    made = books()
    aborted = request(prompt=70, local=0, external=0)
    made.admit(aborted, 0, None, Why.OFF)
    made.finished("a")
    preempted = request(prompt=70, local=60, external=0)
    preempted.num_preemptions = 1
    made.admit(preempted, 0, None, Why.OFF)
    loaded = request(prompt=70, local=60, external=0)
    loaded.num_computed_tokens = 60  # it comes back from its load
    made.admit(loaded, 0, None, Why.OFF)
    made.settle()
    assert not any(made.stats.tokens.values())
    assert not made._open
