"""The heap of leaves: a sorted list, in small steps."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from kvtier.policies.kit.heap import Leaf, LeafHeap
from kvtier.testing.effort import lines

STEPS = st.lists(st.tuples(st.sampled_from(["push", "void", "pop"]), st.integers(0, 50)))


class Tracked:
    """A heap and the entries that are valid in it."""

    def __init__(self) -> None:
        self.stamps = array("q", [0]) * 10_000
        self.heap = LeafHeap(self.stamps)
        self.valid: list[Leaf] = []
        self.count = 0

    def push(self, rank: int) -> None:
        self.count += 1
        leaf = Leaf(rank, self.count, self.count)
        self.stamps[leaf.row] = leaf.stamp
        self.heap.push(leaf)
        self.valid.append(leaf)

    def void(self, i: int) -> None:
        if self.valid:
            self.stamps[self.valid.pop(i % len(self.valid)).row] = 0
            self.heap.voided()

    def pop(self, _: int) -> None:
        lowest = min(self.valid, default=None)
        assert self.heap.top() == lowest
        if lowest:
            self.heap.pop()
            self.valid.remove(lowest)


@given(steps=STEPS)
def test_it_hands_out_what_is_valid_lowest_first(steps: list[tuple[str, int]]) -> None:
    tracked = Tracked()
    for i in range(700):  # so much that half of it is renewed amid the steps
        tracked.push(i % 7)
        tracked.void(i)
    for step, i in steps:
        getattr(tracked, step)(i)
    while tracked.valid:
        tracked.pop(0)
    assert tracked.heap.top() is None


def test_what_is_void_is_bounded_by_what_is_valid_and_forgotten_in_small_steps() -> None:
    tracked = Tracked()
    for i in range(1000):
        tracked.push(i)
    for i in range(8000):
        assert lines(lambda i=i: tracked.push(i)) < 40  # type: ignore[misc]
        assert lines(lambda: tracked.void(0)) < 40
        assert len(tracked.heap) < 2.5 * len(tracked.valid) + 700
