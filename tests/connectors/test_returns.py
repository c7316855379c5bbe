"""What several kvtier connectors give back of one request: vLLM ends where two give back the same key."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from kvtier.connectors.vllm import start
from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.lookups import Lookups
from kvtier.connectors.vllm.returns import Returns
from tests.connectors import halves


def several(engine_id: str) -> Any:
    """vLLM's own MultiConnector around two of ours."""
    made = MultiConnector.__new__(MultiConnector)
    made._connectors, made._all_support_hma = [], True
    made._requests_to_connector, made._extra_async_saves = {}, {}
    for _ in range(2):
        ours = object.__new__(KVTierConnector)
        transfer = KVTransferConfig("KVTierConnector", engine_id=engine_id, kv_role="kv_both")
        ours._lookups = Lookups()
        ours._scheduling = halves.scheduling(kv_transfer_config=transfer)
        made._connectors.append(ours)
    return made


REQUEST = SimpleNamespace(request_id="r", num_output_tokens=1)


@pytest.mark.parametrize("hook", ["request_finished", "request_finished_all_groups"])
def test_two_of_ours_never_give_back_the_same_key(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"more": 1}
    monkeypatch.setattr(OffloadingConnector, hook, lambda self, *_: (False, found))
    made = several(hook)
    for _ in range(2):
        later, params = getattr(made, hook)(REQUEST, [])
        assert (later, params) == (False, {"kvtier": {"more": 1}, "kvtier_1": {"more": 1}})
        assert params["kvtier"] is not found
        params["kvtier"].clear()  # it is the caller's


@pytest.mark.parametrize("hook", ["request_finished", "request_finished_all_groups"])
def test_today_nothing_is_given_back(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OffloadingConnector, hook, lambda self, *_: (False, None))
    assert getattr(several("another"), hook)(REQUEST, []) == (False, None)


def test_each_engine_counts_its_own_and_those_that_are_gone_leave_their_number() -> None:
    first, second, other = Returns("a"), Returns("a"), Returns("b")
    assert [first.index, second.index, other.index] == [0, 1, 0]
    del first
    assert Returns("a").index == 0


def test_a_report_is_in_the_debug_log_too(caplog: pytest.LogCaptureFixture) -> None:
    """The answer of a stream has no field for it."""
    logger = logging.getLogger("vllm.kvtier")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.DEBUG, "vllm.kvtier"):
            start.say_report(REQUEST, {"tokens": {"dram": 7}, "why": "tail"})
    finally:
        logger.removeHandler(caplog.handler)
    said = {record.getMessage() for record in caplog.records}
    assert said == {'kvtier: request r: {"tokens": {"dram": 7}, "why": "tail"}'}


def test_a_report_is_beside_what_vllm_found() -> None:
    found, report = {"a": 1}, {"why": "tail"}
    made = Returns("c")
    assert made.of(None, None) is None
    assert made.of(found, None) == {"kvtier": {"a": 1}}
    assert made.of(found, report) == {"kvtier": {"a": 1, "report": report}}
    assert found == {"a": 1}
