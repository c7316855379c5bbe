"""vLLM shakes hands once until 0.32, and from 0.33 on again at each wake-up."""

from types import SimpleNamespace
from typing import Any

import pytest

from kvtier.config import digest, load
from tests.compat import contract

manager: Any = contract.load("kvtier.connectors.vllm.manager")
messages: Any = contract.load("kvtier.connectors.vllm.messages")
scheduling: Any = contract.load("kvtier.connectors.vllm.scheduling")

CONFIG = load({"tiers": [{"name": "dram", "kind": "dram", "capacity": "1MiB"}]})


def hello(slots: int) -> Any:
    return messages.Hello(
        rank=0,
        slots=slots,
        group_nbytes={0: 4096},
        pages={0: (2048,)},
        config_digest=digest(CONFIG),
        blocks_per_chunk=2,
        weights="commit:0",
    )


@pytest.fixture
def side() -> Any:
    group = SimpleNamespace(group_idx=0, tokens_per_chunk=32, sliding_window_size_in_chunks=None)
    base = SimpleNamespace(
        manager=manager.TieredCacheManager(),
        config=SimpleNamespace(kv_group_configs=[group]),
        _req_status={},
    )
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(get_hidden_size=lambda: 64),
        parallel_config=SimpleNamespace(world_size=1),
        cache_config=SimpleNamespace(prefix_caching_hash_algo="sha256"),
    )
    cache_config = SimpleNamespace(kv_cache_groups=[])
    made = scheduling.Scheduling(CONFIG, vllm_config, cache_config, base)
    made.meet([hello(8)])
    return made


def test_the_brain_of_the_start_outlives_a_wake_up(side: Any) -> None:
    brain = side.brain
    side.meet([hello(8)])
    assert side.brain is brain
    assert not side.guard.broken


def test_ranks_that_are_not_those_of_the_start_turn_kvtier_off(side: Any) -> None:
    side.meet([hello(7)])
    assert "not those of the start" in side.guard.broken
