"""How much work a call is, counted instead of timed: a bound on it fails on no slow machine, and on every one alike."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def lines(call: Callable[[], object]) -> int:
    """Count the lines of Python that a call executes, each round of a loop anew.

    What one line does in C is not seen: slicing or copying a list counts once.
    """
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
