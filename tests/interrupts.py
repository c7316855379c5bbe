"""Children that can be interrupted, whatever the tests themselves were started with."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heeded() -> Iterator[None]:
    """Start children here that are to be interrupted: SIGINT and SIGTERM do in them what they do by default.

    A shell starts a background job with SIGINT ignored, and what is ignored stays so in every child. What
    has a handler has the default again in a new program.
    """
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
