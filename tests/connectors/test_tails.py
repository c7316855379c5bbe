"""A hybrid model's hit may end inside a block: vLLM's real scheduler offers and asks for such parts, and kvtier has them."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from vllm.v1.kv_offload.base import make_offload_key

from tests.compat.contract import release
from tests.connectors.hybrid import BLOCK, UNIT, Hybrid

LENGTH = 3 * BLOCK  # vLLM computes the last token: a hit ends a unit earlier
HIT = LENGTH - UNIT
long = pytest.mark.skipif(
    release() != (0, 32), reason="this vLLM keeps no two states that such a hit is searched by"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Hybrid:
    return Hybrid(tmp_path_factory.mktemp("hybrid"))


def prompt(seed: int, length: int = LENGTH) -> list[int]:
    return random.Random(seed).choices(range(1, 500), k=length)


def cool(engine: Hybrid) -> None:
    """Send all down from tier 0."""
    brain = engine.connector.scheduling.brain
    brain._demotion.make_room(brain.stats().slots)
    assert brain.stats().tiers[0].chunks == 0


def ask(engine: Hybrid, name: str, asked: list[int], **params: Any) -> int:
    """Ask with an empty device."""
    assert engine.scheduler.reset_prefix_cache()
    engine.loaded.clear()
    found = engine.ask(name, asked, **params)
    assert not engine.connector.scheduling.guard.broken
    engine.connector.scheduling.brain.check()
    return found


def keys_of(engine: Hybrid, name: str) -> list[bytes]:
    """What a hit of HIT tokens loads: two whole chunks of attention, the part behind them, and the state at its end."""
    hashes = engine.requests[name].block_hashes
    ends = [(BLOCK, 0), (2 * BLOCK, 0), (HIT, 0), (HIT, 1)]
    return [make_offload_key(hashes[end // UNIT - 1], group) for end, group in ends]


@long
def test_a_part_of_a_block_is_stored_and_loaded_from_dram_and_from_below(engine: Hybrid) -> None:
    asked = prompt(1)
    assert ask(engine, "cold", asked) == 0
    for name in ("dram", "nvme"):
        if name == "nvme":
            cool(engine)
        assert ask(engine, name, asked) == HIT
        ((request, chunks, _),) = engine.loaded
        assert (request, chunks) == (name, keys_of(engine, name))
    # and the state behind the whole chunks, which vLLM looks for again
    assert engine.connector.scheduling.brain.stats().tiers[1].reads == 5


def test_a_part_before_the_first_whole_block(engine: Hybrid) -> None:
    asked = prompt(2, 2 * UNIT + 3)
    assert ask(engine, "short", asked) == 0
    assert ask(engine, "short, from dram", asked) == 2 * UNIT
    cool(engine)
    assert ask(engine, "short, from nvme", asked) == 2 * UNIT


@pytest.mark.parametrize("most", [0, pytest.param(2 * BLOCK + 1, marks=long)])
def test_a_request_that_offers_less_stores_no_part_and_ends_no_engine(
    engine: Hybrid, most: int
) -> None:
    asked = prompt(3 + most)
    assert ask(engine, f"{most}", asked, max_offload_tokens=most) == 0
    assert ask(engine, f"{most} again", asked) == most // BLOCK * BLOCK


@long
def test_another_connector_is_offered_the_parts_that_kvtier_may_not_store(
    engine: Hybrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvtier = engine.connector.build_connector_meta
    seen: list[int] = []

    class Other:
        def build_connector_meta(self, output: Any) -> KVConnectorMetadata:
            offers = output.kv_connector_block_state.boundary_state_offloads
            seen.extend(end for parts in offers.values() for _, _, end in parts)
            return KVConnectorMetadata()

    def build(output: Any) -> KVConnectorMetadata:
        children = [SimpleNamespace(build_connector_meta=kvtier), Other()]
        several = SimpleNamespace(_connectors=children, _extra_async_saves={})
        return MultiConnector.build_connector_meta(several, output).metadata[0]

    monkeypatch.setattr(engine.connector, "build_connector_meta", build)
    assert ask(engine, "beside", prompt(8), max_offload_tokens=BLOCK) == 0
    assert HIT in seen


@long
def test_a_request_that_loads_less_ends_at_a_whole_block(engine: Hybrid) -> None:
    asked = prompt(9)
    assert ask(engine, "all", asked) == 0
    assert ask(engine, "less", asked, max_load_tokens=HIT - 1) == 2 * BLOCK
