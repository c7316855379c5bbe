"""When ranks look at their weights, in virtual time: what is due, what a hit waits for, and which change is told."""

import random

import pytest

from kvtier.connectors.vllm.looks import PERIOD_S, TRUST_S, WAIT_S, Change, Looked, Looks, Trust
from tests.brain.fake_ranks import Clock


class Engine:
    """An engine's steps around `Looks`: each may look, and its ranks answer, `late` steps later."""

    def __init__(self, ranks: int = 1, late: int = 0) -> None:
        self.clock = Clock()
        self.looks = Looks(ranks, self.clock)
        self.weights = ["a"] * ranks
        self.late = late
        self.coming: list[list[Looked]] = [[] for _ in range(late)]
        self.changes: list[Change] = []
        self.looks.heard(self.seen(0))
        self.step()

    def seen(self, look: int) -> list[Looked]:
        return [Looked(rank, look, name.encode()) for rank, name in enumerate(self.weights)]

    def step(self, *, computes: bool = True, seconds: float = 0.0) -> int:
        """Make a step; return the number of its look."""
        self.clock.now += seconds
        look = self.looks.order(computes=computes)
        self.coming.append(self.seen(look) if look else [])
        self.looks.heard(self.coming.pop(0))
        if change := self.looks.take_change():
            self.changes.append(change)
        return look

    def hit(self) -> bool:
        """Ask for a hit, as often as it takes; between the asks nothing computes."""
        while (trust := self.looks.trust()) is Trust.WAIT:
            self.step(computes=False)
        return trust is Trust.YES


def test_an_engine_that_computes_looks_every_few_seconds() -> None:
    engine = Engine()
    looked = [engine.step(seconds=1.0) for _ in range(60)]
    assert sum(map(bool, looked)) == 60 // PERIOD_S
    assert engine.looks.trust() is Trust.YES


def test_without_anything_to_compute_and_nobody_who_asks_nobody_looks() -> None:
    engine = Engine()
    assert not any(engine.step(computes=False, seconds=60.0) for _ in range(9))
    engine.looks.suspect()
    engine.looks.emptied()
    engine.looks.forgotten()
    assert not any(engine.step(computes=False, seconds=60.0) for _ in range(9))


@pytest.mark.parametrize("late", [0, 1, 3])
def test_a_hit_waits_for_a_look_that_is_young(late: int) -> None:
    engine = Engine(ranks=2, late=late)
    assert engine.hit()
    engine.clock.now += TRUST_S + 0.1
    before = engine.looks._sent
    assert engine.hit()
    assert engine.looks._sent == before + 1


@pytest.mark.parametrize("mark", ["suspect", "emptied"])
@pytest.mark.parametrize("late", [0, 2])
def test_what_was_called_is_seen_before_the_next_hit(mark: str, late: int) -> None:
    engine = Engine(ranks=2, late=late)
    assert engine.hit()
    engine.weights[1] = "b"
    getattr(engine.looks, mark)()
    assert engine.looks.trust() is Trust.WAIT
    assert engine.hit()
    assert engine.changes == [Change(ranks=(1,), emptied=mark == "emptied")]


def test_a_look_that_is_under_way_is_not_enough() -> None:
    engine = Engine(late=2)
    engine.looks.suspect()
    assert engine.step()
    engine.weights[0] = "b"
    engine.looks.suspect()
    assert engine.hit()
    assert len(engine.changes) == 1


def test_what_nobody_called_is_seen_within_the_period() -> None:
    engine = Engine(ranks=2)
    engine.weights = ["b", "b"]
    for _ in range(int(PERIOD_S)):
        assert not engine.changes
        engine.step(seconds=1.0)
    assert engine.changes == [Change(ranks=(0, 1), emptied=False)]


def test_of_a_torn_sample_the_last_part_resets_too() -> None:
    engine, parts = Engine(), iter("bcde")
    while len(engine.changes) < 4:
        if (name := next(parts, "")) != "":
            engine.weights[0] = name
        engine.step(seconds=PERIOD_S if not engine.changes else 1.0)
    looked = [bool(engine.step(seconds=1.0)) for _ in range(7)]
    assert looked[0], "once more, until two agree"
    assert sum(looked) == 2
    assert len(engine.changes) == 4


def test_two_changes_and_a_change_back() -> None:
    engine = Engine()
    for names, told in (("bc", 1), ("ac", 1)):  # the second: there and back
        for name in names:
            engine.weights[0] = name
        engine.looks.suspect()
        assert engine.hit()
        assert len(engine.changes) == told
    engine.weights[0] = "a"
    engine.looks.suspect()
    assert engine.hit()
    engine.weights[0] = "c"
    engine.looks.suspect()
    assert engine.hit()
    assert len(engine.changes) == 3, "each call is looked at"


def test_ranks_that_answer_one_after_the_other_are_one_change() -> None:
    clock = Clock()
    looks = Looks(2, clock)
    looks.heard([Looked(0, 0, b"a"), Looked(1, 0, b"a")])
    look = looks.order(computes=True)
    looks.heard([Looked(0, look, b"b")])
    assert looks.take_change() is None
    assert looks.trust() is Trust.WAIT
    looks.heard([Looked(1, look, b"b")])
    assert looks.take_change() == Change(ranks=(0, 1), emptied=True)
    assert looks.take_change() is None
    assert looks.trust() is Trust.YES


@pytest.mark.parametrize("late", [0, 1, 2])
def test_after_a_reset_of_kvtier_what_is_there_is_what_counts(late: int) -> None:
    engine = Engine(late=late)
    engine.looks.suspect()
    assert engine.step()
    engine.weights[0] = "b"
    engine.looks.forgotten()
    assert engine.hit()
    for _ in range(3):
        engine.step(seconds=PERIOD_S)
    assert not engine.changes
    engine.weights[0] = "c"
    for _ in range(2 * late + 2):
        engine.step(seconds=PERIOD_S)
    assert len(engine.changes) == 1


def test_weights_that_came_before_the_first_step() -> None:
    looks = Looks(1, Clock())
    looks.heard([Looked(0, 0, b"dummy")])
    look = looks.order(computes=True)
    looks.heard([Looked(0, look, b"trained")])
    assert looks.take_change() == Change(ranks=(0,), emptied=True)


def test_the_device_is_not_empty_of_what_was_computed_since() -> None:
    engine = Engine()
    engine.looks.emptied()
    engine.step()
    engine.weights[0] = "b"
    engine.step(seconds=PERIOD_S)
    assert engine.changes == [Change(ranks=(0,), emptied=False)]


def test_ranks_that_never_answer_delay_nobody_for_long() -> None:
    clock = Clock()
    looks = Looks(2, clock)
    looks.heard([Looked(0, 0, b"a"), Looked(1, 0, b"a")])
    waited = 0.0
    for _ in range(1000):
        trust = looks.trust()
        assert trust is not Trust.YES
        waited += 0.1 if trust is Trust.WAIT else 0.0
        if look := looks.order(computes=False):
            looks.heard([Looked(0, look, b"a")])
        clock.now += 0.1
    assert waited <= 100 * WAIT_S / TRUST_S + WAIT_S, "half of the time, and each request for 5 s"
    assert len(looks._sent_at) <= 100 / TRUST_S + 1


@pytest.mark.parametrize("seed", range(200))
def test_no_hit_is_ever_older_than_the_promise(seed: int) -> None:
    """A hit counts on chunks of the present epoch: all of weights that were there 10 s ago, or after the last call."""
    rng = random.Random(seed)
    engine = Engine(ranks=rng.randint(1, 3), late=rng.randint(0, 2))
    changed_at, called, told = -TRUST_S, True, 0
    for _ in range(200):
        match rng.randint(0, 5):
            case 0:
                engine.weights[rng.randrange(len(engine.weights))] = f"{rng.random()}"
                changed_at, called, told = engine.clock.now, False, len(engine.changes)
            case 1:
                engine.looks.suspect()
                called = True
            case 2:
                engine.clock.now += rng.random() * 20
            case 3 if engine.hit() and (called or engine.clock.now - changed_at > TRUST_S):
                assert changed_at <= 0 or len(engine.changes) > told
            case _:
                engine.step(computes=rng.random() < 0.7, seconds=rng.random())
