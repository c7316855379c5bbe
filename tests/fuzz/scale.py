"""How long the fuzz runs: seconds in the tests, the same examples each time; for long, and fresh ones, in a soak."""

import os

from hypothesis import HealthCheck, settings

SOAK_S = float(os.environ.get("KVTIER_SOAK_S", "0"))
_IN_TESTS_S = 3.0  # of one test, about


def examples(n: int) -> settings:
    """Try `n` examples in the tests; in a soak as many more as it is longer, shared among about 20 tests."""
    many = max(n, int(n * SOAK_S / 20 / _IN_TESTS_S))
    return settings(
        max_examples=many,
        derandomize=not SOAK_S,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=bool(SOAK_S),
    )
