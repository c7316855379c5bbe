"""What clients say about requests: believed where it makes sense, else ignored aloud."""

import logging

import pytest

from kvtier.connectors.vllm.hints import Hints
from kvtier.facts import RequestHints


def test_what_is_said_reaches_the_policies() -> None:
    said = {"session_id": "s", "priority": -2, "ttl_s": 1.5, "session_end": True, "store": False}
    hints = Hints.of({"kvtier": said})
    assert not hints.store
    assert hints.facts() == RequestHints("s", -2, 1.5, True)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        ("session_id", 7),
        ("session_id", ""),
        ("session_id", "x" * 257),
        ("priority", 1.5),
        ("priority", True),
        ("priority", 1 << 40),
        ("ttl_s", "soon"),
        ("ttl_s", -1),
        ("ttl_s", float("nan")),
        ("ttl_s", float("inf")),
        ("session_end", "yes"),
        ("store", 1),
        ("sesion_id", "s"),
    ],
)
def test_what_makes_no_sense_is_ignored_and_said(
    hint: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Hints.of({"kvtier": {hint: value}}) == Hints()
    assert f"kv_transfer_params.kvtier.{hint}" in caplog.text


@pytest.mark.parametrize("params", [None, {}, {"other": 1}, {"kvtier": 3}])
def test_no_hints(params: dict[str, object] | None) -> None:
    assert Hints.of(params) == Hints()
