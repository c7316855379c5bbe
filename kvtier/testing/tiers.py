"""The contract of every tier, as a test class to derive from."""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvtier.errors import TierError
from kvtier.tier import AskedTier, Bytes, Site, Tier
from kvtier.types import PAGE

FIRST, SECOND = "1" * 32, "2" * 32


class TierContract(ABC):
    """Derive as `class TestMyTier(TierContract)` and say how to make one.

    Where nothing outlives the tier's object, set `persistent = False`.
    """

    persistent = True

    @abstractmethod
    def make(self, site: Site) -> Tier:
        """Make the tier over this test's medium; again over the same one after `close`."""

    @pytest.fixture
    def tier(self) -> Tier:
        """An open tier of rank 0."""
        return self.opened()

    def opened(self, namespace: str = FIRST, rank: int = 0) -> Tier:
        """Make a tier and open it."""
        tier = self.make(Site("contract", rank=rank, local_ranks=2))
        tier.open(namespace, f'{{"namespace": "{namespace}"}}')
        return tier

    def test_reads_what_was_written_in_other_pieces(self, tier: Tier) -> None:
        record = pages(3, seed=1)
        assert tier.write(b"k", split(record, 1, 2)) >= len(record)
        out = pages(3)
        assert tier.read(b"k", split(out, 2, 1)) == len(record)
        assert np.array_equal(out, record)

    def test_nothing_is_no_record(self, tier: Tier) -> None:
        assert tier.read(b"k", [pages(1)]) == 0
        assert not tier.remove(b"k")
        assert list(tier.scan()) == []

    def test_says_what_its_medium_takes_or_that_it_cannot(self, tier: Tier) -> None:
        free = tier.free(2 * PAGE)
        assert free is None or free >= 0

    def test_a_longer_record_says_its_length(self, tier: Tier) -> None:
        record = pages(3, seed=1)
        tier.write(b"k", [record])
        out = pages(2)
        assert tier.read(b"k", [out]) == 3 * PAGE
        assert np.array_equal(out, record[: 2 * PAGE])

    def test_a_shorter_record_leaves_the_rest(self, tier: Tier) -> None:
        tier.write(b"k", [pages(1, seed=1)])
        assert tier.read(b"k", [pages(1), pages(2)]) == PAGE

    def test_replaces(self, tier: Tier) -> None:
        tier.write(b"k", [pages(3, seed=1)])
        tier.write(b"k", [pages(2, seed=2)])
        out = pages(2)
        assert tier.read(b"k", [out]) == 2 * PAGE
        assert np.array_equal(out, pages(2, seed=2))
        assert len(list(tier.scan())) == 1

    def test_removes(self, tier: Tier) -> None:
        tier.write(b"k", [pages(1)])
        assert tier.remove(b"k")
        assert tier.read(b"k", [pages(1)]) == 0
        assert not tier.remove(b"k")

    def test_scans_keys_and_bytes(self, tier: Tier) -> None:
        keys = [bytes([i, 255 - i]) * 18 for i in range(40)]
        nbytes = {key: tier.write(key, [pages(1 + i % 3)]) for i, key in enumerate(keys)}
        assert {entry.key: entry.nbytes for entry in tier.scan()} == nbytes

    def test_a_key_may_have_64_bytes(self, tier: Tier) -> None:
        tier.write(b"\xff" * 64, [pages(1)])
        assert [entry.key for entry in tier.scan()] == [b"\xff" * 64]

    def test_reset_forgets(self, tier: Tier) -> None:
        tier.write(b"k", [pages(1)])
        tier.reset(SECOND, "{}")
        assert tier.read(b"k", [pages(1)]) == 0
        assert list(tier.scan()) == []
        tier.write(b"l", [pages(1)])
        assert [entry.key for entry in tier.scan()] == [b"l"]

    def test_reset_forgets_for_ever(self, tier: Tier) -> None:
        tier.write(b"k", [pages(1)])
        tier.reset(SECOND, "{}")
        tier.close()
        again = self.opened(FIRST)
        assert again.read(b"k", [pages(1)]) == 0

    def test_reset_forgets_an_earlier_life_of_the_new_namespace(self, tier: Tier) -> None:
        tier.write(b"k", [pages(1)])
        tier.close()
        again = self.opened(SECOND)
        again.reset(FIRST, "{}")
        assert again.read(b"k", [pages(1)]) == 0
        assert list(again.scan()) == []

    def test_comes_back(self, tier: Tier) -> None:
        record = pages(2, seed=3)
        tier.write(b"k", [record])
        tier.close()
        again, out = self.opened(), pages(2)
        assert again.read(b"k", [out]) == (2 * PAGE if self.persistent else 0)
        assert np.array_equal(out, record) or not self.persistent

    def test_namespaces_do_not_meet(self, tier: Tier) -> None:
        tier.write(b"k", [pages(1)])
        tier.close()
        assert self.opened(SECOND).read(b"k", [pages(1)]) == 0

    def test_close_is_idempotent(self, tier: Tier) -> None:
        tier.close()
        tier.close()

    def test_write_is_atomic(self, tier: Tier) -> None:
        versions = [pages(8, seed=i) for i in range(2)]
        tier.write(b"k", [versions[0]])

        def rewrite() -> None:
            for i in range(100):
                tier.write(b"k", [versions[i % 2]])

        with ThreadPoolExecutor(2) as pool:
            writer, out = pool.submit(rewrite), pages(8)
            while not writer.done():
                assert tier.read(b"k", [out]) == 8 * PAGE
                assert any(np.array_equal(out, version) for version in versions)
            writer.result()

    def test_threads_do_not_meet(self, tier: Tier) -> None:
        def work(i: int) -> bool:
            record, out, key = pages(2, seed=i), pages(2), bytes([i]) * 4
            for _ in range(10):
                tier.write(key, [record])
                if tier.read(key, [out]) != 2 * PAGE or not np.array_equal(out, record):
                    return False
            return tier.remove(key)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(16)))
        assert list(tier.scan()) == []


def pages(n: int, seed: int | None = None) -> Bytes:
    """Map `n` aligned pages: zeros, or reproducible noise."""
    buf = np.frombuffer(mmap.mmap(-1, n * PAGE), np.uint8)
    if seed is not None:
        buf[:] = np.random.default_rng(seed).integers(0, 256, len(buf), dtype=np.uint8)
    return buf


def split(buf: Bytes, *counts: int) -> Sequence[Bytes]:
    """Cut into pieces of so many pages each."""
    edges = np.cumsum(counts) * PAGE
    return [piece for piece in np.split(buf, edges) if len(piece)]


class AskedTierContract(ABC):
    """What every `AskedTier` must do. A subclass makes tiers of one store, and settles it, loses from it, spoils it.

    `make` may be called several times: the tiers are of several engines that use the store at once.
    """

    @abstractmethod
    def make(self, site: Site) -> AskedTier:
        """Make a tier of the store of this test; the test closes nothing."""

    @abstractmethod
    def damage(self, tier: AskedTier, key: bytes) -> None:
        """Change a byte in the first page of a record, behind the API's back."""

    def least(self, n: int) -> int:
        """Return the least that a tier may say of `n` records that lead: all, if it counts each."""
        return n

    def settle(self) -> None:  # noqa: B027 - optional: most stores show at once what was written
        """Wait until every engine sees what was written."""

    def opened(self, namespace: str = FIRST, rank: int = 0) -> AskedTier:
        """Make a tier and open it."""
        tier = self.make(Site("shared", rank=rank))
        tier.open(namespace, "{}")
        return tier

    def test_what_one_writes_another_finds_and_reads(self) -> None:
        one, other = self.opened(), self.opened()
        record, out = pages(3, seed=1), pages(3)
        assert one.write(b"k", [record[:PAGE], record[PAGE:]]) == 3 * PAGE
        self.settle()
        assert other.has(b"k")
        assert other.leading([b"k"]) == 1
        assert other.read(b"k", [out[: 2 * PAGE], out[2 * PAGE :]]) == 3 * PAGE
        assert np.array_equal(out, record)

    def test_a_record_larger_than_the_buffers_says_its_length_and_the_next_is_read_well(
        self,
    ) -> None:
        tier = self.opened()
        tier.write(b"k", [pages(3, seed=1)])
        tier.write(b"l", [pages(1, seed=2)])
        out = pages(1)
        assert tier.read(b"k", [out]) == 3 * PAGE
        assert np.array_equal(out, pages(3, seed=1)[:PAGE])
        assert tier.read(b"l", [out]) == PAGE
        assert np.array_equal(out, pages(1, seed=2))

    def test_what_is_absent_is_no_error(self) -> None:
        tier = self.opened()
        assert not tier.has(b"k")
        assert tier.read(b"k", [pages(1)]) == 0
        assert not tier.remove(b"k")
        assert not tier.discard(b"k", bytes(PAGE))
        assert tier.leading([]) == 0
        assert list(tier.scan()) == []

    @pytest.mark.parametrize("n", [0, 1, 63, 64, 700])
    def test_it_counts_what_leads_and_nothing_behind_a_hole(self, n: int) -> None:
        tier = self.opened()
        keys = [b"key %d" % i for i in range(1000)]
        for key in [*keys[:n], *keys[n + 1 : n + 3]]:
            tier.write(key, [pages(1)])
        self.settle()
        assert self.least(n) <= tier.leading(keys) <= n
        assert self.least(n) <= tier.leading(keys[:n]) <= n
        assert tier.leading(keys[:1]) == (n > 0)

    def test_namespaces_and_ranks_are_apart(self) -> None:
        tier = self.opened()
        tier.write(b"k", [pages(1)])
        self.settle()
        for other in (self.opened(SECOND), self.opened(rank=1)):
            assert not other.has(b"k")
            assert other.read(b"k", [pages(1)]) == 0

    def test_one_engine_that_resets_or_leaves_takes_nothing_with_it(self) -> None:
        one, other = self.opened(), self.opened()
        one.write(b"k", [pages(1, seed=1)])
        one.reset(SECOND, "{}")
        assert not one.has(b"k")
        one.close()
        self.settle()
        assert other.has(b"k")
        assert other.read(b"k", [pages(1)]) == PAGE

    def test_only_what_was_found_corrupt_is_discarded(self) -> None:
        tier = self.opened()
        record, out = pages(2, seed=1), pages(2)
        tier.write(b"k", [record])
        self.damage(tier, b"k")
        assert tier.read(b"k", [out]) == 2 * PAGE
        assert not np.array_equal(out, record)
        found = out[:PAGE].tobytes()
        tier.write(b"k", [record])  # another engine, meanwhile
        assert not tier.discard(b"k", found)
        assert tier.has(b"k")
        self.damage(tier, b"k")
        assert tier.discard(b"k", found)
        self.settle()
        assert not tier.has(b"k")

    def test_two_that_write_one_record_leave_a_whole_one(self) -> None:
        tiers = [self.opened(), self.opened()]
        records = [pages(64, seed=i) for i in range(2)]
        with ThreadPoolExecutor(4) as pool:
            wrote = [pool.submit(tiers[i % 2].write, b"k", [records[i % 2]]) for i in range(20)]
            for each in wrote:
                assert each.result() == 64 * PAGE
        out = pages(64)
        assert tiers[0].read(b"k", [out]) == 64 * PAGE
        assert any(np.array_equal(out, record) for record in records)

    def test_nothing_is_served_before_it_is_open(self) -> None:
        tier = self.make(Site("shared"))
        with pytest.raises(TierError, match="no namespace is open"):
            tier.has(b"k")
        with pytest.raises(TierError, match="no namespace is open"):
            tier.read(b"k", [pages(1)])
