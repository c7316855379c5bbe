"""What a hit came from adds up as vLLM adds it up, though it is given a few ranges and not one for each chunk."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytest.importorskip(
    "vllm.v1.metrics.cache_hit_source", reason="this vLLM does not count what hits came from"
)

from hypothesis import given
from hypothesis import strategies as st
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
    OffloadingConnectorScheduler,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvtier.connectors.vllm.statuses import Statuses

REQUEST: Any = SimpleNamespace(request_id="a")
PARTS = st.tuples(st.booleans(), st.integers(1, 3), st.integers(0, 1))  # from below, blocks, a gap


@given(st.lists(st.lists(PARTS, max_size=12), min_size=1, max_size=2), st.integers(0, 20))
def test_they_add_up(groups: list[list[tuple[bool, int, int]]], computed: int) -> None:
    ranges: list[tuple[int, int, bytes]] = []
    for parts in groups:
        at = 0
        for below, blocks, gap in parts:
            ranges.append((at + gap, at + gap + blocks, b"below" if below else b"dram"))
            at += gap + blocks
    end = max((high for _, high, _ in ranges), default=0)
    if end <= computed:
        return
    status = SimpleNamespace(
        load_key_ranges=ranges, num_locally_computed_tokens=computed, req_context=None
    )
    sources = {b"below": CacheHitSource.DISK, b"dram": CacheHitSource.HOST}
    base: Any = SimpleNamespace(
        _req_status={"a": status},
        manager=SimpleNamespace(get_load_source=lambda key, _: sources[key]),
    )
    ask = OffloadingConnectorScheduler.get_external_cache_hit_sources
    before = ask(base, REQUEST, end - computed)
    Statuses(base).join_loaded(REQUEST, lambda key, _: key == b"below")
    assert ask(base, REQUEST, end - computed) == before
    assert not any(a[1] == b[0] and a[2] == b[2] for a, b in pairwise(ranges))
