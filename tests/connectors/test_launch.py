"""The copies of a step are ordered before its forward pass, although vLLM submits them behind its launch."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.messages import KVTierMetadata
from tests.connectors import halves

META = KVTierMetadata(load_jobs={}, store_jobs={}, jobs_to_flush=None)


class Engine:
    def __init__(self, calls: list[str], failing: bool) -> None:
        self.calls, self.failing = calls, failing

    def launching(self) -> None:
        if self.failing:
            raise RuntimeError("the device is gone")
        self.calls.append("launching")

    def launched(self) -> None:
        self.calls.append("launched")


def connector(calls: list[str], failing: bool = False) -> KVTierConnector:
    """The worker's side of one whose vLLM half only says what it is asked for."""
    made = object.__new__(KVTierConnector)
    made._connector_metadata = None
    made._rank = halves.rank(halves.worker(Engine(calls, failing)))
    vllm: Any = SimpleNamespace(
        handle_preemptions=lambda meta: calls.append("flush"),
        start_kv_transfers=lambda meta: calls.append("submit"),
    )
    made.connector_worker = vllm
    return made


def step(of: KVTierConnector) -> None:
    """What both of vLLM's model runners do."""
    context: Any = None
    of.handle_preemptions(META)
    of.bind_connector_metadata(META)
    of.start_load_kv(context)


def test_what_is_flushed_is_ordered_by_itself_and_what_is_submitted_before_the_pass() -> None:
    calls: list[str] = []
    step(connector(calls))
    assert calls == ["launched", "flush", "launching", "submit", "launched"]


def test_a_device_that_fails_then_turns_kvtier_off_and_the_engine_goes_on() -> None:
    calls: list[str] = []
    made = connector(calls, failing=True)
    step(made)
    assert "the device is gone" in made.rank.guard.broken
    assert calls == ["launched", "flush", "submit"]
