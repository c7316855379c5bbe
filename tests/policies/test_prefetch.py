"""What prefetch policies ask for, and when."""

import pytest

from kvtier.config import Plugin
from kvtier.facts import GroupKeys, RequestFacts, RequestHints
from kvtier.policies.conversations.gaps import Gaps
from kvtier.policies.prefetch.reuse_distance import ReuseDistancePolicy
from kvtier.policies.prefetch.sliding_window import SlidingWindowPolicy
from kvtier.policy import Move
from kvtier.registry import build
from kvtier.testing.policies import FixedFacts, chain

GAP_S = 100.0


def facts(name: str, n: int, now: float, hints: RequestHints | None = None) -> RequestFacts:
    return RequestFacts(name, (GroupKeys(chain(name, n), 16, None),), now, hints or RequestHints())


def turn(
    policy: ReuseDistancePolicy, name: str, n: int, hints: RequestHints | None = None
) -> list[Move]:
    """Serve one request within a second; return what was asked for at its end."""
    assert isinstance(policy.facts, FixedFacts)
    request = facts(name, n, policy.facts.now, hints)
    assert [move.keys for move in policy.arrived(request)] == [chain(name, n)]
    policy.facts.now += 1
    return list(policy.departed(request))


def taught(spread: float = 1.0) -> ReuseDistancePolicy:
    """Make a policy that saw a second turn follow each first one."""
    policy = build("prefetch", Plugin(kind="reuse_distance"), FixedFacts())
    assert isinstance(policy, ReuseDistancePolicy)
    assert isinstance(policy.facts, FixedFacts)
    for i in range(10):
        turn(policy, f"chat{i}/", 4)
        policy.facts.now += GAP_S * (spread if i % 2 else 1 / spread)
        turn(policy, f"chat{i}/", 6)
    return policy


def test_a_lineage_comes_up_when_its_class_usually_comes_back_and_goes_down_later() -> None:
    policy = taught(spread=2.0)
    now = policy.facts.clock() + 1
    up, down = turn(policy, "new/", 4)
    assert (up.up, down.up) == (True, False)
    assert up.keys == down.keys == tuple(chain("new/", 4))
    assert up.at_s - now == pytest.approx(GAP_S)
    assert down.at_s - now == pytest.approx(GAP_S * 2.0**3)


def test_what_came_back_is_not_moved_any_more() -> None:
    policy = taught()
    up, down = turn(policy, "new/", 4)
    assert up.still is not None
    assert up.still()
    turn(policy, "new/", 6)
    assert not up.still()
    assert down.still is not None
    assert not down.still()


def test_nothing_is_asked_for_before_gaps_are_known() -> None:
    policy = build("prefetch", Plugin(kind="reuse_distance"), FixedFacts())
    assert isinstance(policy, ReuseDistancePolicy)
    assert turn(policy, "new/", 4) == []


def test_a_session_that_a_client_ends_goes_down_at_once() -> None:
    policy = taught()
    (move,) = turn(policy, "new/", 4, RequestHints(session_end=True))
    assert not move.up
    assert move.at_s == policy.facts.clock()


def test_a_window_group_brings_its_window_after_the_full_groups() -> None:
    policy = SlidingWindowPolicy(FixedFacts())
    window, full = chain("w", 8), chain("f", 8)
    groups = (GroupKeys(window, 16, 3), GroupKeys(full, 16, None))
    moves = policy.arrived(RequestFacts("r", groups, 0.0, RequestHints()))
    assert [list(move.keys) for move in moves] == [full, window[-3:]]


def test_a_short_prefix_is_its_own_window() -> None:
    policy = SlidingWindowPolicy(FixedFacts())
    keys = chain("w", 2)
    (move,) = policy.arrived(RequestFacts("r", (GroupKeys(keys, 16, 3),), 0.0, RequestHints()))
    assert list(move.keys) == keys


def test_gaps_average_decades_evenly() -> None:
    gaps = Gaps()
    for gap_s in (1.0, 100.0) * 10:
        gaps.add(gap_s)
    assert gaps.at(0) == pytest.approx(10.0)
    assert gaps.at(1) == pytest.approx(100.0)
    assert gaps.at(-1) == pytest.approx(1.0)
