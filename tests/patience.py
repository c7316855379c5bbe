"""How long a test waits for what must come: minutes, so that only what hangs takes longer, on a slow machine too."""

import time
from collections.abc import Callable

HANG_S = 300.0


def nap() -> None:
    """Leave the machine to others for a moment."""
    time.sleep(0.01)


def until(done: Callable[[], object], what: str, meanwhile: Callable[[], object] = nap) -> None:
    """Do `meanwhile` until `done` is true; after HANG_S fail, and say that `what` did not happen."""
    end = time.monotonic() + HANG_S
    while not done():
        assert time.monotonic() < end, f"not in {HANG_S:.0f} s: {what}"
        meanwhile()
