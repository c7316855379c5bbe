"""Methods of vLLM's that tell us of their calls, each wrapped once in a process."""

from collections.abc import Callable
from typing import Any

_MARK = "kvtier"


def wrapped(theirs: Any, wrap: Callable[[Any], Any]) -> Any:
    """Return a function as `wrap` makes it, or itself if it was made so before.

    A mark tells the two apart. `__wrapped__` does not: the wrapper of any other plugin has it too.
    """
    if _MARK in vars(theirs):
        return theirs
    ours = wrap(theirs)
    vars(ours)[_MARK] = True
    return ours
