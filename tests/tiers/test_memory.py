"""The memory tier: the contract of every tier, and that its capacity is real bytes."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier import topology
from kvtier.errors import ConfigError, TierError
from kvtier.testing.tiers import FIRST, SECOND, TierContract, pages
from kvtier.tier import Site
from kvtier.tiers.extents import Extent, Extents
from kvtier.tiers.memory import MemoryConfig, MemoryTier
from kvtier.topology import numa_nodes
from kvtier.types import PAGE

CAPACITY = 256 * PAGE


class MemoryMedium:
    """Make memory tiers, and close them after the test."""

    @pytest.fixture(autouse=True)
    def _medium(self) -> Iterator[None]:
        self.tiers: list[MemoryTier] = []
        yield
        for tier in self.tiers:
            tier.close()

    def make(self, site: Site) -> MemoryTier:
        site = site._replace(capacity=CAPACITY, nodes=numa_nodes()[:1])
        self.tiers.append(MemoryTier(MemoryConfig(), site))
        return self.tiers[-1]

    def started(self) -> MemoryTier:
        tier = self.make(Site("memory"))
        tier.open(FIRST, "{}")
        return tier


class TestMemoryTier(MemoryMedium, TierContract):
    persistent = False


class TestCapacity(MemoryMedium):
    def test_every_page_of_the_capacity_holds_a_record(self) -> None:
        tier = self.started()
        for i in range(256):
            assert tier.write(b"%d" % i, [pages(1, seed=i)]) == PAGE
        with pytest.raises(TierError, match="4096 bytes, and 0B are free"):
            tier.write(b"more", [pages(1)])
        out = pages(1)
        for i in range(256):
            assert tier.read(b"%d" % i, [out]) == PAGE
            assert np.array_equal(out, pages(1, seed=i))

    def test_a_record_that_fits_no_hole_lies_in_pieces(self) -> None:
        tier = self.started()
        for i in range(256):
            tier.write(b"%d" % i, [pages(1)])
        for i in range(0, 256, 2):
            tier.remove(b"%d" % i)
        record, out = pages(128, seed=1), pages(128)
        assert tier.write(b"large", [record]) == 128 * PAGE
        assert tier.read(b"large", [out[: 5 * PAGE], out[5 * PAGE :]]) == 128 * PAGE
        assert np.array_equal(out, record)
        assert len(tier._records[b"large"].extents) == 128

    def test_a_failed_write_leaves_what_was_there(self) -> None:
        tier = self.started()
        record, out = pages(200, seed=1), pages(200)
        tier.write(b"k", [record])
        with pytest.raises(TierError):
            tier.write(b"k", [pages(100)])
        assert tier.read(b"k", [out]) == 200 * PAGE
        assert np.array_equal(out, record)
        assert tier.remove(b"k")
        tier.write(b"all", [pages(256)])

    def test_its_pages_are_on_their_node(self) -> None:
        tier = self.started()
        tier.write(b"k", [pages(64)])
        ((node, nbytes),) = tier.located()
        assert node == numa_nodes()[0]
        assert 64 * PAGE <= nbytes <= CAPACITY

    def test_what_straddles_a_reset_is_not_stored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tier = self.started()
        copy = tier._copy

        def reset_meanwhile(*arguments: object, **named: object) -> None:
            copy(*arguments, **named)  # type: ignore[arg-type] # whatever it is given
            tier.reset(SECOND, "{}")

        monkeypatch.setattr(tier, "_copy", reset_meanwhile)
        with pytest.raises(TierError, match="the tier was reset"):
            tier.write(b"k", [pages(3)])
        monkeypatch.undo()
        assert list(tier.scan()) == []
        tier.write(b"all", [pages(256)])  # and its pages are free

    def test_what_is_removed_while_it_is_read_stays_whole(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tier = self.started()
        tier.write(b"k", [pages(200, seed=1)])
        copy = tier._copy

        def replaced_meanwhile(*arguments: object, **named: object) -> None:
            monkeypatch.undo()
            tier.remove(b"k")
            with pytest.raises(TierError):  # its pages are not free yet
                tier.write(b"other", [pages(200)])
            copy(*arguments, **named)  # type: ignore[arg-type] # whatever it is given

        monkeypatch.setattr(tier, "_copy", replaced_meanwhile)
        out = pages(200)
        assert tier.read(b"k", [out]) == 200 * PAGE
        assert np.array_equal(out, pages(200, seed=1))
        tier.write(b"other", [pages(200)])


@pytest.mark.parametrize("capacity", [0, PAGE - 1, 1 << 60])
def test_a_capacity_that_cannot_be_is_refused_in_words(capacity: int) -> None:
    with pytest.raises(ConfigError, match=r"tier 'far': capacity: .* are left for it"):
        MemoryTier(MemoryConfig(), Site("far", capacity=capacity))


@pytest.mark.parametrize(
    ("local_ranks", "engines", "filled"),
    [(1, 1, True), (2, 1, True), (3, 1, False), (1, 2, True), (2, 2, False)],
)
def test_it_is_filled_in_where_there_is_room_for_every_rank(
    local_ranks: int, engines: int, filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: 2 * CAPACITY)
    site = Site("far", local_ranks=local_ranks, engines=engines, capacity=CAPACITY)
    tier = MemoryTier(MemoryConfig(), site)
    assert (tier._prefault is not None) == filled
    tier.close()


def test_what_it_may_count_on_decides_and_what_is_free_now_is_filled_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a death of the I/O process the arena has its part: that is no reason to refuse."""
    monkeypatch.setattr(topology, "free_nbytes", lambda: CAPACITY - 1)
    site = Site("far", capacity=CAPACITY)
    for refused in (site, site._replace(spare_nbytes=CAPACITY - 1), site._replace(spare_nbytes=-1)):
        with pytest.raises(ConfigError):
            MemoryTier(MemoryConfig(), refused)
    tier = MemoryTier(MemoryConfig(), site._replace(spare_nbytes=CAPACITY))
    tier.open(FIRST, "{}")
    assert tier._prefault is None
    assert tier.write(b"k", [pages(3)]) == 3 * PAGE
    tier.close()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 90)), max_size=80))
@settings(max_examples=200, deadline=None)
def test_extents_against_a_set_of_pages(steps: list[tuple[bool, int]]) -> None:
    extents = Extents(100)
    free = set(range(100))
    held: list[tuple[Extent, ...]] = []
    for take, n in steps:
        if take:
            taken = extents.take(n)
            assert bool(taken) == (n <= len(free))
            numbers = [start + i for start, size in taken for i in range(size)]
            assert len(numbers) == len(set(numbers)) == (n if taken else 0)
            assert free.issuperset(numbers)
            free.difference_update(numbers)
            held += [taken] if taken else []
        elif held:
            given_back = held.pop(n % len(held))
            extents.give(given_back)
            free.update(start + i for start, size in given_back for i in range(size))
        assert extents.free == len(free)
        assert len(extents._holes) == sum(page - 1 not in free for page in free)


@pytest.mark.parametrize(("kept_free", "mean_pieces"), [(0, 20), (1 / 16, 2)])
def test_fragmentation_stays_bounded_over_a_long_run(kept_free: float, mean_pieces: float) -> None:
    """Records of compressed 2 MiB chunks, evicted oldest first and at random: 15.6 and 1.5 pieces were measured."""
    rng = random.Random(1)
    extents = Extents(64 << 10)  # 256 MiB
    held: list[tuple[Extent, ...]] = []
    pieces = 0
    for _ in range(20_000):
        n = rng.randint(200, 513)
        while extents.free < max(n, kept_free * extents.pages):
            extents.give(held.pop(0 if rng.random() < 0.7 else rng.randrange(len(held))))
        held.append(extents.take(n))
        pieces += len(held[-1])
    assert pieces / 20_000 < mean_pieces
