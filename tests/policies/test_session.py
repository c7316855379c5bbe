"""What the session policy makes of requests: lineages, shared prefixes, dead tails, hints, learned returns."""

import random

import pytest

from kvtier.facts import GroupKeys, RequestFacts, RequestHints
from kvtier.policies.conversations import returns
from kvtier.policies.conversations.expiries import Expiries
from kvtier.policies.conversations.lineages import Lineage
from kvtier.policies.conversations.returns import ReturnTimes, Watched
from kvtier.policies.conversations.tails import Tails
from kvtier.policies.eviction.session import SessionPolicy
from kvtier.testing.effort import lines
from kvtier.testing.policies import FixedFacts, chain, insert_chain, never, touch_chain
from kvtier.types import BlockKey


class Served:
    """A policy and a clock, requests one after the other."""

    def __init__(self) -> None:
        self.facts = FixedFacts()
        self.policy = SessionPolicy(self.facts)
        self.here: set[BlockKey] = set()

    def serve(self, keys: list[BlockKey], hints: RequestHints | None = None) -> None:
        """Let a request use what is here and store the rest."""
        group = GroupKeys(keys, 16, None)
        request = RequestFacts("r", (group,), self.facts.now, hints or RequestHints())
        self.policy.arrived(request)
        n = sum(key in self.here for key in keys)
        touch_chain(self.policy, keys[:n])
        for key, parent in reversed(list(zip(keys, [None, *keys], strict=False))[n:]):
            self.policy.insert(key, parent)
            self.here.add(key)
        self.policy.departed(request)

    def wait(self, seconds: float) -> None:
        self.facts.now += seconds

    def victims(self, n: int) -> list[BlockKey]:
        return self.policy.victims(n, lambda key: False)


def test_before_anything_is_known_the_longest_idle_lineage_goes_from_its_tail() -> None:
    served = Served()
    old, new = chain("a", 3), chain("b", 3)
    served.serve(old)
    served.wait(60)
    served.serve(new)
    assert served.victims(4) == [*reversed(old), new[-1]]


def test_the_class_that_comes_back_is_kept_though_it_is_idle_for_longer() -> None:
    """First turns never come back, second ones always do, after a minute: an idle second turn is worth more."""
    served = Served()
    for i in range(80):
        served.serve(chain(f"once{i}/", 4))
        name = f"chat{i}/"
        served.serve([*chain(name, 4)])
        for turn in range(5, 12):
            served.wait(60)
            served.serve(chain(name, turn))
        served.wait(60)
    served.serve(chain("chat/", 4))
    for turn in range(5, 8):
        served.wait(60)
        served.serve(chain("chat/", turn))
    served.wait(45)
    served.serve(chain("new/", 4))
    kept = set(served.victims(len(served.here) - 7))
    assert not kept & set(chain("chat/", 7))


def test_what_a_lineage_left_behind_goes_first() -> None:
    served = Served()
    keys = chain("a", 6)
    served.serve(chain("z", 2))
    served.serve([*keys[:5], BlockKey(b"cut short")])
    served.wait(10)
    served.serve([*keys, BlockKey(b"again")])
    assert served.victims(1) == [b"cut short"]


def test_a_shared_prefix_is_no_lineage_and_outlives_those_that_share_it() -> None:
    served = Served()
    system = chain("system", 2)
    for i in range(6):
        served.serve([*system, *chain(f"user{i}/", 3)])
        served.wait(5)
    victims = served.victims(19)
    assert victims[-1] == system[1]
    assert not set(system) & set(victims[:-1])


def test_a_session_that_a_client_ends_goes_first() -> None:
    served = Served()
    served.serve(chain("a", 3))
    served.wait(60)
    served.serve(chain("b", 3), RequestHints(session_end=True))
    assert served.victims(3) == list(reversed(chain("b", 3)))


def test_a_lineage_dies_with_its_ttl_unless_it_was_used() -> None:
    served = Served()
    served.serve(chain("a", 3))
    served.wait(1)
    served.serve(chain("b", 3), RequestHints(ttl_s=30))
    served.wait(31)
    assert served.victims(1) == chain("b", 3)[-1:]
    served.serve(chain("b", 3))
    assert served.victims(1) == chain("a", 3)[-1:]


def test_of_a_lineage_only_the_end_that_was_told_last_is_kept() -> None:
    expiries, lineage, other = Expiries(), Lineage(last_s=0.0), Lineage(last_s=0.0)
    expiries.add(other, 50.0)
    for ttl_s in (10.0, *(90.0 + i for i in range(5000))):
        expiries.add(lineage, ttl_s)
    assert len(expiries._heap) < 2000
    assert list(expiries.due(5000.0)) == [other]
    assert list(expiries.due(6000.0)) == [lineage]


def test_ends_are_bounded_and_the_one_that_was_told_first_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvtier.policies.conversations.expiries._LIMIT", 3)
    expiries, lineages = Expiries(), [Lineage(last_s=0.0) for _ in range(3000)]
    for lineage in lineages:
        expiries.add(lineage, 9.0)
    assert len(expiries._heap) < 2000
    assert list(expiries.due(9.0)) == lineages[-3:]


def test_a_low_priority_goes_before_an_equal_one() -> None:
    served = Served()
    served.serve(chain("a", 3))
    served.serve(chain("b", 3), RequestHints(priority=-1))
    assert served.victims(3) == list(reversed(chain("b", 3)))


def test_a_session_is_followed_by_its_name_where_keys_do_not_tell() -> None:
    served = Served()
    for n in range(2, 6):
        served.serve(chain(f"edited{n}/", n), RequestHints(session="s"))
    assert served.policy._told._lineages._sessions["s"].turn == 3


def test_the_index_peaks_before_the_usual_return_and_falls_after_it() -> None:
    times, rng, now = ReturnTimes(1), random.Random(1), 0.0
    waiting = [Watched() for _ in range(50)]
    for each in waiting:
        times.used(each, 0, now)
    for _ in range(40):
        now += 100
        for each in waiting:
            if rng.random() < 0.8:
                times.used(each, 0, now)
    times.fit(now)
    fresh, soon, late = (times.index(0, idle_s) for idle_s in (0, 80, 1500))
    assert soon > 2 * fresh > 0
    assert late < fresh


def test_the_index_is_the_best_of_all_horizons() -> None:
    rng = random.Random(3)
    for power in (1, 2, 5, 20) * 10:
        chances = [rng.random() ** power for _ in range(returns._BINS)]
        for first, index in enumerate(returns._indices(chances)):
            here, back, held, best = 1.0, 0.0, 0.0, 0.0
            for chance, width in list(zip(chances, returns._WIDTHS, strict=True))[first:]:
                back += here * chance
                held += here * width * (1 - chance / 2)
                here *= 1 - chance
                best = max(best, back / held)
            assert index == pytest.approx(best, rel=1e-12)


def test_after_a_long_pause_a_fit_takes_no_longer_than_many_make_good() -> None:
    times, few = ReturnTimes(1), ReturnTimes(1)
    for i in range(20_000):
        times.used(Watched(), 0, i / 1000)
    for _ in range(50):
        few.used(Watched(), 0, 20.0)
    assert lines(lambda: times.fit(9000.0)) < lines(lambda: few.fit(9000.0)) + 7 * returns._MOVES
    for _ in range(16_000):
        times.used(Watched(), 0, 9000.0)
        times.fit(9000.0)
    assert times._curves[0].reached[-1] == 20_000


def test_chunks_at_the_end_are_waste_once_they_were_never_used_again() -> None:
    tails = Tails()
    for i in range(20):
        assert tails.waste() == (2 if i >= 16 else 0)
        tails.went_on(chain("k", 5), set(chain("k", 3)))
    assert tails.waste() == 2


def test_what_is_void_is_bounded_by_the_chunks_of_each_queue() -> None:
    policy = SessionPolicy(FixedFacts())
    for key in chain("x", 6000):
        policy.insert(key, None)
    for again in range(4000):
        policy.place(0, 5, float(again))
    for row in range(3000):
        policy.place(row, 6, 0.0)
    for row in range(3000):
        policy.place(row, 7, 0.0)
    for heaps in (policy._heaps, policy._highest):
        pairs = zip(heaps, policy.counts, strict=True)
        assert all(len(heap) <= 4 * count + 1025 for heap, count in pairs)
    assert len(policy.victims(9000, never)) == 6000


def test_clear_forgets_what_was_learned() -> None:
    served = Served()
    insert_chain(served.policy, chain("x", 3))
    served.serve(chain("a", 3))
    served.policy.clear()
    served.here.clear()
    assert served.victims(9) == []
    served.serve(chain("a", 3))
    assert served.victims(9) == list(reversed(chain("a", 3)))
