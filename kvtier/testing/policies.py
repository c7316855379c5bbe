"""The contract of eviction policies, as tests: subclass `PolicyContract` and implement `make`."""

import random
from collections.abc import Callable, Sequence

from kvtier.facts import TierFacts
from kvtier.policy import EvictionPolicy
from kvtier.testing.effort import lines
from kvtier.types import BlockKey

Parents = dict[BlockKey, BlockKey | None]


class FixedFacts(TierFacts):
    """Facts that a test sets: equal chunks of 16 tokens, unless it says otherwise."""

    def __init__(self, capacity: int | None = None) -> None:
        self.now = 0.0
        self.limit = capacity
        self.sizes: dict[BlockKey, int] = {}
        self.savings: dict[BlockKey, float] = {}
        self.scores: dict[BlockKey, float] = {}

    def clock(self) -> float:
        return self.now

    @property
    def capacity(self) -> int | None:
        return self.limit

    def nbytes(self, key: BlockKey) -> int:
        return self.sizes.get(key, 1)

    def seconds(self, key: BlockKey) -> float:
        return self.savings.get(key, 1.0)

    def prefill_s(self, start: int, end: int) -> float:
        return (end - start) / 16

    def read_s(self, nbytes: int) -> float:
        return 0.0

    def score(self, key: BlockKey) -> float | None:
        return self.scores.get(key)


def chain(name: str, n: int) -> list[BlockKey]:
    """Make the keys of one prefix, head first."""
    return [BlockKey(f"{name}{i}".encode()) for i in range(n)]


def insert_chain(policy: EvictionPolicy, keys: Sequence[BlockKey]) -> None:
    """Insert a prefix as the brain does: tail first."""
    for key, parent in reversed(list(zip(keys, [None, *keys], strict=False))):
        policy.insert(key, parent)


def touch_chain(policy: EvictionPolicy, keys: Sequence[BlockKey]) -> None:
    """Use a prefix as the brain does: tail first."""
    for key in reversed(keys):
        policy.touch(key)


def never(key: BlockKey) -> bool:
    """Pin nothing."""
    return False


class PolicyContract:
    """What the brain relies on, whatever the policy prefers."""

    def make(self) -> EvictionPolicy:
        """Return a new policy that tracks nothing."""
        raise NotImplementedError

    def test_an_empty_policy_has_no_victims(self) -> None:
        assert self.make().victims(3, never) == []

    def test_every_chunk_is_a_victim_once_if_enough_are_asked_for(self) -> None:
        policy = self.make()
        keys = [*chain("a", 4), *chain("b", 3)]
        insert_chain(policy, keys[:4])
        insert_chain(policy, keys[4:])
        victims = policy.victims(100, never)
        assert sorted(victims) == sorted(keys)

    def test_no_more_victims_than_asked_for(self) -> None:
        policy = self.make()
        insert_chain(policy, chain("a", 5))
        assert len(policy.victims(2, never)) == 2
        assert policy.victims(0, never) == []

    def test_choosing_removes_nothing(self) -> None:
        policy = self.make()
        insert_chain(policy, chain("a", 5))
        assert policy.victims(3, never) == policy.victims(3, never)
        assert len(policy.victims(100, never)) == 5

    def test_a_removed_chunk_is_no_victim(self) -> None:
        policy = self.make()
        keys = chain("a", 3)
        insert_chain(policy, keys)
        policy.remove(keys[2])
        assert sorted(policy.victims(9, never)) == sorted(keys[:2])
        policy.insert(keys[2], keys[1])
        assert policy.victims(1, never) == [keys[2]]

    def test_a_cleared_policy_knows_nothing(self) -> None:
        policy = self.make()
        keys = chain("a", 3)
        insert_chain(policy, keys)
        policy.touch(keys[0])
        policy.clear()
        assert policy.victims(9, never) == []
        insert_chain(policy, keys)
        assert policy.victims(9, never) == keys[::-1]

    def test_unknown_keys_are_ignored(self) -> None:
        policy = self.make()
        unknown = BlockKey(b"unknown")
        policy.touch(unknown)
        policy.remove(unknown)
        policy.evicted(unknown)
        policy.insert(BlockKey(b"child"), unknown)
        assert policy.victims(9, never) == [BlockKey(b"child")]

    def test_a_tail_goes_before_its_head(self) -> None:
        policy = self.make()
        keys = chain("a", 6)
        insert_chain(policy, keys)
        assert policy.victims(6, never) == keys[::-1]

    def test_a_tail_goes_before_its_head_when_inserted_head_first(self) -> None:
        policy = self.make()
        keys = chain("a", 4)
        for key, parent in zip(keys, [None, *keys], strict=False):
            policy.insert(key, parent)
        assert policy.victims(4, never) == keys[::-1]

    def test_a_tail_goes_before_its_head_when_only_the_tail_is_used(self) -> None:
        policy = self.make()
        keys = chain("a", 4)
        insert_chain(policy, keys)
        policy.touch(keys[3])
        assert policy.victims(4, never) == keys[::-1]

    def test_pinned_chunks_and_their_ancestors_stay(self) -> None:
        policy = self.make()
        keys, others = chain("a", 5), chain("b", 2)
        insert_chain(policy, keys)
        insert_chain(policy, others)
        victims = policy.victims(9, lambda key: key == keys[2])
        assert sorted(victims) == sorted([keys[3], keys[4], *others])

    def test_the_prefix_rule_holds_in_every_answer(self) -> None:
        policy = self.make()
        rng = random.Random(1)
        parents: Parents = {}
        for _ in range(400):
            self._change(policy, parents, rng)
            pinned = {key for key in parents if rng.random() < 0.1}
            victims = policy.victims(rng.randrange(1, 8), pinned.__contains__)
            self._check(victims, parents, pinned.__contains__)
            if rng.random() < 0.5:
                for victim in victims:
                    policy.remove(victim)
                    policy.evicted(victim)
                    del parents[victim]

    def test_a_call_is_no_more_work_in_a_larger_tier(self) -> None:
        few, many = self._work(100), self._work(1000)
        assert many <= 2 * few, (
            f"the same calls execute {few} lines of Python where the tier holds 100 prefixes, and {many} where it "
            "holds 1,000: some loop goes over all that is here. A tier may hold millions of chunks, and the engine "
            "waits for every call: keep what orders the chunks in a heap, an OrderedDict, or PrefixPolicy"
        )

    def _work(self, n: int) -> int:
        """Count the lines that fifty uses, each with an eviction and an insertion, execute in a tier of `n` prefixes."""
        policy = self.make()
        for i in range(n):
            insert_chain(policy, chain(f"old{i}/", 4))

        def turn(i: int) -> None:
            used = chain(f"old{7 * i % n}/", 4)
            touch_chain(policy, used)
            for victim in policy.victims(4, used.__contains__):
                policy.remove(victim)
                policy.evicted(victim)
            insert_chain(policy, chain(f"new{i}/", 4))

        def turns(first: int, n: int) -> None:
            for i in range(first, first + n):
                turn(i)

        turns(0, 20)  # not counted: what a policy does after many insertions
        return lines(lambda: turns(20, 50))

    @staticmethod
    def _change(policy: EvictionPolicy, parents: Parents, rng: random.Random) -> None:
        keys = chain(rng.choice("abcdef"), rng.randrange(1, 12))
        present = [key for key in keys if key in parents]
        if rng.random() < 0.5:
            touch_chain(policy, present)
            return
        fresh = [(k, p) for k, p in zip(keys, [None, *keys], strict=False) if k not in parents]
        for key, parent in reversed(fresh):
            policy.insert(key, parent)
            parents[key] = parent
        touch_chain(policy, present)

    @staticmethod
    def _check(
        victims: Sequence[BlockKey], parents: Parents, pinned: Callable[[BlockKey], bool]
    ) -> None:
        assert len(set(victims)) == len(victims)
        staying = parents.keys() - set(victims)
        for victim in victims:
            assert victim in parents, "a victim that is not here"
            assert not pinned(victim), "a pinned victim"
        stranded = {parents[key] for key in staying} & set(victims)
        assert not stranded, "a parent leaves before its child"
