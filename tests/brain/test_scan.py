"""The list of a tier at start: no container of it grows with all that is listed, nor goes at once."""

import sys

from kvtier.brain.scan import Scan
from kvtier.types import ScanBatch
from tests.brain.fake_ranks import chain

N = 20_000


def test_what_was_listed_is_forgotten_a_part_at_a_time() -> None:
    keys = [bytes([i * 37 % 256]) + key for i, key in enumerate(chain("k", N))]
    scan = Scan(7, 1)
    assert scan.add(ScanBatch(0, 1, 7, list(keys), [1] * N, [float(i) for i in range(N)], True))
    for _ in range(N // 100):
        assert not scan.listed, "it takes in more than it is told to"
        scan.work(100)
    assert scan.listed
    before = sum(map(sys.getrefcount, keys))
    assert not scan.orphans()
    assert sum(map(sys.getrefcount, keys)) == before
    taken = []
    while found := scan.take(64):
        taken += [key for key, _ in found]
        now = sum(map(sys.getrefcount, keys))
        assert before - now < 400, "so many are freed at once"
        before = now
    assert taken == keys
    assert not any(scan._whole)
