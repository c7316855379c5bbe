"""Where the ranks' memory is becomes a gauge by tier and node."""

import pytest

pytest.importorskip("vllm")

from kvtier.brain.stats import MEMORY
from kvtier.connectors.vllm.messages import KVTierWorkerMetadata
from kvtier.connectors.vllm.metrics import Meter, definitions
from kvtier.types import Placed
from tests.brain.fake_engine import Shape, started


def test_ranks_are_added_up_and_what_moved_away_is_zero() -> None:
    stats = started(Shape()).cache.stats()
    meter = Meter()
    meter.place([Placed(0, 0, 0, 10), Placed(0, 0, 1, 5), Placed(1, 0, 0, 7)])
    first = meter.collect(stats)
    assert first is not None
    shown = meter._nodes(stats)
    assert shown == {("dram", "0"): 17, ("dram", "1"): 5}
    meter.place([Placed(0, 0, 0, 15)])
    assert meter._nodes(stats) == {("dram", "0"): 22, ("dram", "1"): 0}
    assert meter.collect(stats) is not None
    assert meter.collect(stats) is None
    assert definitions()[MEMORY.name].labelnames == ("tier", "node")


def test_every_rank_s_word_survives_the_aggregation() -> None:
    first = KVTierWorkerMetadata(placed=[Placed(0, 0, 0, 1)])
    second = KVTierWorkerMetadata(placed=[Placed(1, 0, 1, 2)])
    assert first.aggregate(second).placed == [Placed(0, 0, 0, 1), Placed(1, 0, 1, 2)]
