"""Several brains over one store that lies, forgets, and answers in any order."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvtier.types import OpKind, OpStatus, WriteMode
from tests.brain.fake_engine import Engine, Shape
from tests.brain.test_machine import STATUSES, WAITS, random_calls

NAMES = "abc"
PICK = st.integers(0, 30)


def fleet(shape: Shape, engines: int, rng: random.Random, lies: float) -> list[Engine]:
    """Make engines that have the same store in their last tier, with what each rank wrote there."""
    made = [Engine(shape) for _ in range(engines)]
    tier = len(shape.modes)

    def lie(leading: int, asked: int) -> int:
        return rng.randint(0, asked + 1) if rng.random() < lies else leading

    for engine in made:
        engine.ranks.lie = lie
        for rank, first in zip(engine.ranks.ranks, made[0].ranks.ranks, strict=True):
            rank.records[tier] = first.records[tier]
    return made


def verify(engines: list[Engine]) -> None:
    for engine in engines:
        engine.verify()
        harm = {OpKind.REMOVE, OpKind.RECLAIM, OpKind.RESET}
        tier = len(engine.published) - 1
        assert not [op for op in engine.ranks.sent if op.tier == tier and op.kind in harm]


class Fleet(RuleBasedStateMachine):
    """Two or three engines; each does what an engine does, and time passes for all."""

    @initialize(
        engines=st.integers(2, 3),
        ranks=st.integers(1, 2),
        slots=st.integers(2, 14),
        owned=st.booleans(),
        write=st.sampled_from([WriteMode.THROUGH, WriteMode.IDLE, WriteMode.ON_REUSE]),
        prefetch=st.booleans(),
        lies=st.sampled_from([0.0, 0.3]),
        seed=st.integers(0, 1000),
    )
    def start(
        self,
        engines: int,
        ranks: int,
        slots: int,
        owned: bool,
        write: WriteMode,
        prefetch: bool,
        lies: float,
        seed: int,
    ) -> None:
        modes = (*[WriteMode.ON_EVICT] * owned, write)
        shape = Shape(ranks=ranks, slots=slots, modes=modes, prefetch=prefetch, asked=1)
        self.engines = fleet(shape, engines, random.Random(seed), lies)
        for engine in self.engines:
            engine.step()

    def pick(self, n: int) -> Engine:
        return self.engines[n % len(self.engines)]

    @rule(who=PICK, source=st.sampled_from(NAMES), n=st.integers(1, 8))
    def arrive(self, who: int, source: str, n: int) -> None:
        self.pick(who).arrive(source, n, True)

    @rule(who=PICK, n=PICK, load=st.booleans())
    def schedule(self, who: int, n: int, load: bool) -> None:
        self.pick(who).schedule(n, load)

    @rule(who=PICK, n=PICK, upto=st.integers(1, 8))
    def store(self, who: int, n: int, upto: int) -> None:
        self.pick(who).store(n, upto)

    @rule(who=PICK, n=PICK)
    def finish(self, who: int, n: int) -> None:
        self.pick(who).finish(n, set())

    @rule(who=PICK, n=PICK)
    def depart(self, who: int, n: int) -> None:
        self.pick(who).depart(n)

    @rule(who=PICK)
    def step(self, who: int) -> None:
        self.pick(who).step()

    @rule(who=PICK)
    def drain(self, who: int) -> None:
        self.pick(who).drain()

    @rule(who=PICK, n=PICK, rank=PICK, status=st.sampled_from(STATUSES))
    def answer(self, who: int, n: int, rank: int, status: OpStatus) -> None:
        self.pick(who).answer(n, rank, status)

    @rule(who=PICK, rank=PICK)
    def die(self, who: int, rank: int) -> None:
        self.pick(who).die(rank)

    @rule(who=PICK)
    def reset(self, who: int) -> None:
        if who % 7 == 0:
            self.pick(who).reset(True)

    @rule(rank=PICK, n=PICK)
    def forget(self, rank: int, n: int) -> None:
        """Let the store evict a record of one rank, unknown to all."""
        tier = len(self.engines[0].published) - 1
        ranks = self.engines[0].ranks.ranks
        records = ranks[rank % len(ranks)].records[tier]
        if records:
            del records[sorted(records)[n % len(records)]]

    @rule(seconds=st.sampled_from(WAITS))
    def wait(self, seconds: float) -> None:
        for engine in self.engines:
            engine.clock.now += seconds

    @invariant()
    def truth(self) -> None:
        if hasattr(self, "engines"):
            verify(self.engines)

    def teardown(self) -> None:
        if hasattr(self, "engines"):
            for engine in self.engines:
                engine.end()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=30, stateful_step_count=50)


@pytest.mark.parametrize("seed", range(12))
def test_no_engine_of_a_fleet_ever_lies_on_long_walks(seed: int) -> None:
    rng = random.Random(seed)
    shape = Shape(
        ranks=rng.randint(1, 2),
        slots=rng.randint(4, 16),
        modes=(*[WriteMode.IDLE] * rng.randint(0, 1), rng.choice(list(WriteMode))),
        prefetch=rng.random() < 0.5,
        asked=1,
    )
    engines = fleet(shape, rng.randint(2, 3), rng, rng.choice([0.0, 0.2]))
    for _ in range(300):
        engine = rng.choice(engines)
        calls = random_calls(engine, rng)
        _, call = rng.choices(calls, [weight for weight, _ in calls])[0]
        call()
        verify(engines)
    for engine in engines:
        engine.end()


def test_in_a_fleet_that_is_well_most_is_found_with_the_peers() -> None:
    shape = Shape(slots=40, modes=(WriteMode.THROUGH,), asked=1)
    first, second = fleet(shape, 2, random.Random(1), 0.0)
    for engine in (first, second):
        engine.step()
    first.arrive("a", 8, True)
    first.store(0, 8)
    first.finish(0, set())
    first.ranks.settle()
    second.arrive("a", 8, True)
    second.step()
    second.schedule(0, load=True)
    second.step()
    second.schedule(0, load=True)
    assert second.cache.stats().tiers[1].hits == 8
    assert second.cache.stats().loads == 8
    for engine in (first, second):
        engine.end()
