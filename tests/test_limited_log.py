"""One cause does not flood a log: it is said once in a while, with how often it was not said."""

import logging

import pytest

from kvtier.limited_log import LimitedLog


def test_each_cause_is_said_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = LimitedLog(logging.getLogger("some"), 60.0, lambda: now)
    for i in range(5):
        log.warning("a", "a %d", i)
        log.warning("b", "b %d%%", i)
    now = 60.0
    log.warning("a", "a %d", 5)
    assert caplog.messages == ["a 0", "b 0%", "a 5 (and 4 more before)"]


def test_an_exception_comes_with_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    log = LimitedLog(logging.getLogger("some"), 60.0)
    for _ in range(2):
        try:
            raise ValueError("bad")
        except ValueError:
            log.traced("x", "it failed")
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "it failed")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "bad"


def test_causes_without_end_become_one(caplog: pytest.LogCaptureFixture) -> None:
    log = LimitedLog(logging.getLogger("some"), 60.0, lambda: 0.0)
    for i in range(1000):
        log.warning(i, "%d", i)
    assert len(caplog.records) == 257
