"""Every eviction policy in the table: the contract, golden misses, no holes whatever happens."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.policies.eviction.lru import LruPolicy
from kvtier.policies.kit.prefix import PrefixPolicy
from kvtier.policy import EvictionPolicy
from kvtier.registry import EVICTION
from kvtier.testing.policies import FixedFacts, PolicyContract, chain, insert_chain, never
from kvtier.types import BlockKey
from tests.policies import golden
from tests.policies.conversations import facts, misses
from tests.policies.golden import make

GOLDEN = golden.golden()
EVERY = sorted(EVICTION)


@pytest.mark.parametrize("name", EVERY)
class TestEveryPolicy(PolicyContract):
    @pytest.fixture(autouse=True)
    def choose(self, name: str) -> None:
        self.name = name

    def make(self) -> EvictionPolicy:
        return make(self.name)


class Searching(LruPolicy):
    """Looks at all that is here for each victim."""

    def victims(self, n: int, pinned: Callable[[BlockKey], bool]) -> list[BlockKey]:
        held = [run for run in self._order if run]
        return super().victims(min(n, len(held)), pinned)


def test_the_contract_knows_a_policy_that_searches_through_all() -> None:
    class Contract(PolicyContract):
        def make(self) -> EvictionPolicy:
            return Searching(FixedFacts())

    with pytest.raises(AssertionError, match="goes over all that is here"):
        Contract().test_a_call_is_no_more_work_in_a_larger_tier()


@pytest.mark.parametrize("name", [name for name in EVERY if name != "lru"])
def test_a_search_does_not_look_again_at_all_that_earlier_ones_spared(name: str) -> None:
    policy, prefixes = make(name), [chain(f"p{i}/", 3) for i in range(1000)]
    for keys in prefixes:
        insert_chain(policy, keys)
    ends = {keys[-1] for keys in prefixes}
    free = [key for key in policy.victims(3000, never) if key in ends][-1]
    looks = 0

    def pinned(key: BlockKey) -> bool:
        nonlocal looks
        looks += 1
        return key in ends and key != free

    for _ in range(20):
        policy.victims(1, pinned)
    looks = 0
    assert policy.victims(1, pinned) == [free]
    assert looks < 100
    ends.clear()
    assert len(policy.victims(9999, pinned)) == 3000, "nothing is forgotten"


def test_every_policy_has_golden_misses() -> None:
    assert sorted(GOLDEN) == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_golden_misses(name: str) -> None:
    assert golden.count(name) == GOLDEN[name]


def test_the_command_writes_the_golden_file_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "FILE", tmp_path / "golden_misses.json")
    monkeypatch.setattr(golden, "count", GOLDEN.__getitem__)  # counted above
    golden.main([])
    assert golden.golden() == GOLDEN
    committed = Path(golden.__file__).with_name("golden_misses.json")
    assert golden.FILE.read_text() == committed.read_text()


def test_the_command_prints_what_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    golden.main(["kvtier.policies.eviction.lru:LruPolicy"])
    assert json.loads(capsys.readouterr().out) == {
        "kvtier.policies.eviction.lru:LruPolicy": GOLDEN["lru"]
    }


@pytest.mark.parametrize("name", EVERY)
def test_victims_that_are_written_first_teach_as_much(name: str) -> None:
    assert misses(make(name), 60, written=True) == GOLDEN[name]["60"]


@pytest.mark.parametrize("name", ["arc", "s3fifo"])
def test_a_chunk_that_is_wanted_again_while_it_is_written_is_no_ghost(name: str) -> None:
    policy, keys = make(name), chain("a", 3)
    insert_chain(policy, keys)
    policy.remove(keys[2])
    policy.insert(keys[2], keys[1])
    policy.evicted(keys[2])
    assert isinstance(policy, PrefixPolicy)
    assert policy.counts == [3, 0]
    policy.remove(keys[2])
    policy.evicted(keys[2])
    policy.insert(keys[2], keys[1])
    assert policy.counts[1], "a ghost came back"


def test_what_was_removed_is_remembered_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.policies.kit.prefix._LEFT", 4)
    policy, keys = make("arc"), chain("a", 9)
    insert_chain(policy, keys)
    for key in reversed(keys):
        policy.remove(key)
    assert isinstance(policy, PrefixPolicy)
    assert [policy.left(key) is not None for key in keys] == [True] * 4 + [False] * 5


@pytest.mark.parametrize("name", EVERY)
def test_asking_often_is_the_same_as_asking_once(name: str) -> None:
    assert misses(make(name), 60, peeks=1) == misses(make(name), 60, peeks=20)


@pytest.mark.parametrize("name", EVERY)
def test_inserting_again_what_is_here_changes_nothing(name: str) -> None:
    policy, keys = make(name), chain("a", 4)
    for key, parent in zip(keys, [None, *keys], strict=False):
        policy.insert(key, parent)
    insert_chain(policy, keys)
    policy.insert(keys[3], BlockKey(b"another"))
    for key in reversed(keys):
        assert policy.victims(1, never) == [key]
        policy.remove(key)
    assert policy.victims(9, never) == []


def test_wtinylfu_moves_what_a_scan_left_in_the_window_bit_by_bit() -> None:
    policy, (window, probation) = make("wtinylfu"), (0, 1)
    assert isinstance(policy, PrefixPolicy)
    for key in chain("scan", 5000):
        policy.insert(key, None)
    policy.victims(1, never)
    assert policy.counts[probation] <= 260
    for _ in range(20):
        policy.victims(1, never)
    assert policy.counts[window] <= 0.11 * 5000


class Tier:
    """A policy and what the brain would know of its tier."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self.parents: dict[BlockKey, BlockKey | None] = {}
        self.requests = 0

    def serve(self, name: str, n: int, wait_s: float) -> None:
        """Let a request use what is here of its prefix and store the rest, now and then head first."""
        assert isinstance(self.policy.facts, FixedFacts)
        self.policy.facts.now += wait_s
        self.requests += 1
        keys = chain(name, n)
        request = facts(str(self.requests), keys, self.policy.facts.now)
        self.policy.arrived(request)
        if n % 3:
            self.policy.started(request)
        for key in reversed(keys):
            self.policy.touch(key)
        fresh = [(k, p) for k, p in zip(keys, [None, *keys], strict=False) if k not in self.parents]
        for key, parent in fresh if n % 5 == 0 else reversed(fresh):
            self.policy.insert(key, parent)
            self.parents[key] = parent
        if n % 4:
            self.policy.departed(request)

    def evict(self, n: int, pins: frozenset[int]) -> None:
        """Ask for victims while some chunks are pinned, check the answer, and let the victims go."""
        here = sorted(self.parents)
        pinned = {here[i % len(here)] for i in pins} if here else set()
        victims = self.policy.victims(n, pinned.__contains__)
        assert len(victims) == len(set(victims)) <= n
        assert not pinned.intersection(victims), "a pinned victim"
        left = {key: parent for key, parent in self.parents.items() if key not in victims}
        assert len(left) == len(here) - len(victims), "a victim that is not here"
        assert not set(left.values()) & set(victims), "a hole in a prefix"
        spared = self.ancestors(pinned)
        assert len(victims) == min(n, len(here) - len(spared)), "too few victims"
        for victim in victims:
            self.policy.remove(victim)
            self.policy.evicted(victim)
        self.parents = left

    def ancestors(self, pinned: set[BlockKey]) -> set[BlockKey]:
        """List what is pinned and what stands above it."""
        spared = set()
        for key in pinned:
            at: BlockKey | None = key
            while at is not None and at in self.parents:
                spared.add(at)
                at = self.parents[at]
        return spared

    def lose(self, n: int) -> None:
        """Remove a chunk from the middle: its record was damaged."""
        if self.parents:
            key = sorted(self.parents)[n % len(self.parents)]
            self.policy.remove(key)
            del self.parents[key]

    def clear(self) -> None:
        """Reset."""
        self.policy.clear()
        self.parents.clear()


SERVE = st.tuples(
    st.just("serve"), st.sampled_from("abcd"), st.integers(1, 12), st.sampled_from([0.0, 1.0, 90.0])
)
EVICT = st.tuples(
    st.just("evict"), st.integers(0, 14), st.frozensets(st.integers(0, 40), max_size=3)
)
LOSE = st.tuples(st.just("lose"), st.integers(0, 40))
CLEAR = st.tuples(st.just("clear"))
STEPS = st.lists(st.one_of(SERVE, SERVE, EVICT, EVICT, LOSE, CLEAR), max_size=40)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=60)
@given(steps=STEPS)
def test_never_a_hole_nor_a_pinned_victim(name: str, steps: list[tuple[object, ...]]) -> None:
    tier = Tier(make(name))
    for step, *arguments in steps:
        getattr(tier, str(step))(*arguments)
    tier.evict(1000, frozenset())
    assert not tier.parents, "a chunk that nobody can evict"
