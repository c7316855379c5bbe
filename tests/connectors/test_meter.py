"""Numbers are told once a second and at rest, and none is lost."""

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("vllm")

from kvtier import __version__
from kvtier.brain.stats import INFO, IO_CPU, CacheStats, TierStats
from kvtier.connectors.vllm.metrics import Meter
from tests.connectors import scheduler


class Told:
    """What an engine's counters add up to, by name, and how often there were any."""

    def __init__(self, engine: Any) -> None:
        self.times, self.sums = 0, Counter[str]()
        self._ask = engine.scheduler.connector.get_kv_connector_stats
        engine.scheduler.connector.get_kv_connector_stats = self.ask

    def ask(self) -> Any:
        stats = self._ask()
        found = {
            name: sum(values.values())
            for name, values in (stats.data["data"] if stats else {}).items()
            if name.startswith("kvtier:") and stats.data["types"][name] != "histogram"
        }
        self.times += bool(found)
        self.sums.update(found)
        return stats


def engine_at(clock: list[float]) -> Any:
    engine = scheduler.engine(blocks=2000, chunk_tokens=32, slots=500)
    side = engine.connector.scheduling
    side.meter = side._manager.meter = Meter(lambda: clock[0])
    return engine


def test_a_busy_engine_is_asked_for_numbers_once_a_second() -> None:
    clock = [0.0]
    engine = engine_at(clock)
    told = Told(engine)
    for i in range(8):
        engine.add(f"r{i}", 100 + i)
    engine.settle()
    told.times = 0
    for _ in range(40):
        clock[0] += 0.125
        engine.step()
    assert 2 <= told.times <= 5


def test_an_engine_at_rest_has_told_everything() -> None:
    clock = [0.0]
    engine = engine_at(clock)
    told = Told(engine)
    engine.add("a", 200)
    engine.settle()
    engine.run(50)
    stored = engine.connector.scheduling.brain.stats().stores
    assert stored >= 7
    assert told.sums["kvtier:stored_chunks"] < stored, "the clock stands still"
    engine.abort(["a"])
    engine.run(3)
    stats = engine.connector.scheduling.brain.stats()
    assert told.sums["kvtier:stored_chunks"] == stats.stores
    assert told.sums["kvtier:lookup_calls"] == stats.lookups


def test_the_step_with_the_last_token_of_all_tells_everything() -> None:
    """Whoever drives an engine by hand makes no step after it."""
    clock = [0.0]
    engine = engine_at(clock)
    told = Told(engine)
    engine.add("a", 100, max_tokens=50)
    engine.add("b", 100, max_tokens=70)
    while engine.scheduler.get_request_counts() != (0, 0):
        engine.step()
    assert (
        told.sums["kvtier:stored_chunks"] == engine.connector.scheduling.brain.stats().stores >= 9
    )


def test_processor_time_goes_on_where_an_io_process_is_a_new_one() -> None:
    meter, stats = Meter(), CacheStats()
    for seconds in (5.0, 7.5, 1.0):
        meter.spent({0: seconds, 1: 2.0})
    told = meter.collect(stats)
    assert told is not None
    assert told.data["data"][IO_CPU.name] == {("0",): 8.5, ("1",): 2.0}


def test_what_kvtier_is_here_is_told_once() -> None:
    meter, stats = Meter(), CacheStats()
    meter.introduce(256, 2, "abc")
    told = meter.collect(stats)
    assert told is not None
    assert told.data["data"][INFO.name] == {(__version__, "256", "2", "abc"): 1}
    assert meter.collect(stats) is None


def test_a_histogram_is_there_before_it_has_anything_and_is_told_each_value_once() -> None:
    meter, nvme = Meter(), TierStats(name="nvme")
    stats, name = CacheStats(tiers=(TierStats(name="dram"), nvme)), "kvtier:tier_read_wait_seconds"
    told = meter.collect(stats)
    assert told is not None
    assert told.data["data"][name]["nvme",] == []
    nvme.count_wait(0.5)
    nvme.count_wait(1.5)
    told = meter.collect(stats)
    assert told is not None
    assert told.data["data"][name] == {("nvme",): [0.5, 1.5]}
    assert told.data["types"][name] == "histogram"
    assert meter.collect(stats) is None
