import pytest

from kvtier.facts import GroupKeys, RequestFacts, RequestHints
from kvtier.policies.eviction.attention import AttentionPolicy
from kvtier.testing.policies import FixedFacts, chain, insert_chain, never
from kvtier.types import BlockKey

Config = AttentionPolicy.Config


def request(
    name: str, keys: list[BlockKey], session: str | None = None, *, end: bool = False
) -> RequestFacts:
    hints = RequestHints(session=session, session_end=end)
    return RequestFacts(name, (GroupKeys(keys, 16, None),), 0.0, hints)


def test_without_scores_it_is_lru() -> None:
    policy = AttentionPolicy(Config(), FixedFacts())
    a, b = chain("a", 2), chain("b", 2)
    insert_chain(policy, a)
    insert_chain(policy, b)
    for key in reversed(a):
        policy.touch(key)
    assert policy.victims(4, never) == [*b[::-1], *a[::-1]]


def test_a_full_score_outlives_younger_chunks() -> None:
    facts = FixedFacts()
    policy = AttentionPolicy(Config(weight=2.0), facts)
    old, young = chain("old", 1), chain("y", 3)
    insert_chain(policy, old)
    insert_chain(policy, young)
    facts.scores[old[0]] = 1.0
    policy.touch(old[0])
    for key in reversed(young):
        policy.touch(key)
    assert policy.victims(4, never)[-1] == old[0]


def test_the_last_chunks_of_a_session_leave_last() -> None:
    policy = AttentionPolicy(Config(protect=1, share=0.5), FixedFacts())
    a, b = chain("a", 3), chain("b", 3)
    insert_chain(policy, a)
    insert_chain(policy, b)
    policy.departed(request("r1", a, "s"))
    assert policy.victims(4, never) == [*b[::-1], a[2]]
    policy.departed(request("r2", a, "s", end=True))
    assert policy.victims(1, never) == [a[2]], "the session has ended"


def test_protection_is_bounded_and_the_oldest_session_loses_it_first() -> None:
    policy = AttentionPolicy(Config(protect=1, share=0.34), FixedFacts())
    chains = [chain(name, 1) for name in "abc"]
    for keys in chains:
        insert_chain(policy, keys)
    policy.departed(request("r1", chains[0]))
    policy.departed(request("r2", chains[1]))
    assert policy.victims(3, never) == [chains[0][0], chains[2][0], chains[1][0]]


def test_sessions_without_chunks_are_not_remembered() -> None:
    policy = AttentionPolicy(Config(), FixedFacts())
    for i in range(9):
        policy.departed(request(f"r{i}", []))
    assert not policy._recent


def test_sessions_that_end_in_the_same_chunks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.policies.eviction.attention._LIMIT", 3)
    policy, keys = AttentionPolicy(Config(protect=1, share=1.0), FixedFacts()), chain("a", 4)
    insert_chain(policy, keys)
    for i in range(9):
        policy.departed(request(f"r{i}", keys))
    assert list(policy._recent) == ["r6", "r7", "r8"]
    assert policy._guards == {keys[-1]: 3}
