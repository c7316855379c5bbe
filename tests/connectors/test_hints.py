"""What clients say about requests: believed where it makes sense, else ignored aloud."""

import logging
import re

import pytest

from kvtier.connectors.vllm.hints import Complaints, Hints
from kvtier.facts import RequestHints


def test_what_is_said_reaches_the_policies() -> None:
    said = {"session_id": "s", "priority": -2, "ttl_s": 1.5, "session_end": True, "store": False}
    hints = Hints.of({"kvtier": said}, Complaints())
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
        assert Hints.of({"kvtier": {hint: value}}, Complaints()) == Hints()
    assert re.search(rf"kv_transfer_params: kvtier\.'?{hint}", caplog.text)


@pytest.mark.parametrize("params", [None, {}, {"other": 1}, {"kvtier": 3}, "boo", 7, ["kvtier"]])
def test_no_hints(params: object) -> None:
    assert Hints.of(params, Complaints()) == Hints()


def test_a_hundred_thousand_unknown_hints_are_one_short_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    many = {f"x\nERROR EngineCore died {i}": i for i in range(100_000)}
    with caplog.at_level(logging.WARNING):
        assert Hints.of({"kvtier": {**many, "priority": 2}}, Complaints()) == Hints(priority=2)
    (record,) = caplog.records
    said = record.getMessage()
    assert len(said) < 300
    assert "\n" not in said
    assert "100000 unknown hints in all" in said


def test_the_report_of_another_engine_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    """A proxy hands on to one engine what another one gave back."""
    report = {"tokens": {"dram": 512}, "wait_ms": 3, "why": "tail"}
    with caplog.at_level(logging.WARNING):
        told = Hints.of(
            {"kvtier": {"report": report}, "kvtier_1": {"report": report}}, Complaints()
        )
    assert told == Hints()
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        Hints.of({"kvtier": {"report": report, "stor": 1}}, Complaints())
    assert [record.getMessage() for record in caplog.records] == [
        "kv_transfer_params: kvtier.'stor': unknown hint; ignored"
    ]


def test_who_errs_in_every_request_is_told_once_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    complaints = Complaints(lambda: now)
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            Hints.of({"kvtier": {"store": 1}}, complaints)
        now = 11.0
        Hints.of({"kvtier": {"store": 1}}, complaints)
    assert [record.getMessage() for record in caplog.records] == [
        "kv_transfer_params: kvtier.store: expected true or false; ignored",
        "kv_transfer_params: kvtier.store: expected true or false; ignored (and 99 more before)",
    ]


def test_of_a_long_session_name_the_hash_is_kept() -> None:
    long, other = Hints().in_session("x" * 1_000_000), Hints().in_session("x" * 1_000_001)
    assert long.session_id is not None
    assert len(long.session_id) <= 64
    assert long != other
    assert long == Hints().in_session("x" * 1_000_000)
    assert Hints(session_id="mine").in_session("vllm's").session_id == "mine"
    assert Hints().in_session("vllm's").session_id == "vllm's"
    assert Hints().in_session(None).session_id is None
    assert Hints().in_session(7).session_id is None
