"""Reads under way are looked at when one may be late, and then each is late as if they were always looked at."""

from hypothesis import given
from hypothesis import strategies as st

from kvtier.brain.reads import Reads
from kvtier.types import BlockKey

KEYS = [BlockKey(bytes([i])) for i in range(6)]
ACTS = st.tuples(
    st.sampled_from(["begin", "ahead", "end", "demand", "wait", "excuse"]),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.5, 1.0, 2.5]),
)


class Looked(Reads):
    """Reads that are looked at whenever they are asked anything."""

    def _look(self) -> None:
        self._look_at = -1.0
        super()._look()


@given(st.lists(ACTS, max_size=40))
def test_nothing_is_late_later(acts: list[tuple[str, int, float]]) -> None:
    now = 0.0
    lazy, eager = (kind(2.0, lambda: now) for kind in (Reads, Looked))
    under_way: set[BlockKey] = set()
    for act, i, seconds in acts:
        key = KEYS[i]
        now += seconds
        if act in ("begin", "ahead") and key not in under_way:
            under_way.add(key)
            for reads in (lazy, eager):
                reads.begin(key, demanded=act == "begin")
        elif act == "end" and key in under_way:
            under_way.remove(key)
            for reads in (lazy, eager):
                reads.end(key)
        elif act == "demand" and key in under_way:
            for reads in (lazy, eager):
                reads.demand(key)
        elif act == "excuse":
            for reads in (lazy, eager):
                reads.excuse()
        late = [[reads.is_late(key) for key in sorted(under_way)] for reads in (lazy, eager)]
        assert late[0] == late[1]
        assert (lazy.in_time, lazy.ahead, lazy.hung) == (eager.in_time, eager.ahead, eager.hung)
