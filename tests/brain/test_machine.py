"""The brain against a side that knows what every slot and record really contains."""

import random
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvtier.hook import HookSet
from kvtier.registry import ADMISSION, EVICTION
from kvtier.types import Medium, OpStatus, WriteMode
from tests.brain.fake_engine import Engine, Shape, started
from tests.brain.fake_ranks import RECORD

NAMES = "abcde"
PICK = st.integers(0, 30)
FAULTS = [
    OpStatus.MISSING,
    OpStatus.CORRUPT,
    OpStatus.ERROR,
    OpStatus.DEADLINE,
    OpStatus.CANCELLED,
    OpStatus.NO_ROOM,
]
STATUSES = [*[OpStatus.OK] * 14, *FAULTS]
FREE = [-1, 0, 0, RECORD, 8 * RECORD, 1 << 40]
WAITS = [0.1, 0.1, 1.1, 2.5, 70.0]
SHORT_WAITS = [0.01, 0.05, 0.1, 0.1, 1.1, 2.5]


class Machine(RuleBasedStateMachine):
    """Any interleaving of requests, copies, answers, faults and time."""

    @initialize(
        shape=st.builds(
            Shape,
            ranks=st.integers(1, 2),
            slots=st.integers(1, 14),
            capacity=st.integers(1, 12),
            modes=st.lists(st.sampled_from(list(WriteMode)), max_size=2).map(tuple),
            hybrid=st.booleans(),
            prefetch=st.booleans(),
            watermark=st.sampled_from([0.0, 0.2, 0.5]),
            eviction=st.sampled_from(sorted(EVICTION)),
            admission=st.sampled_from(sorted(ADMISSION)),
            hooks=st.just(HookSet()),
            below_admission=st.just(""),
            asked=st.booleans(),
            overlap=st.booleans(),
            medium=st.none()
            | st.builds(Medium, read=st.floats(1, 1e12), latency_s=st.floats(0, 10)),
            found=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 7)), max_size=6).map(
                tuple
            ),
        )
    )
    def start(self, shape: Shape) -> None:
        self.engine = Engine(shape)

    @rule(
        source=st.sampled_from(NAMES),
        n=st.integers(1, 8),
        persist=st.booleans(),
        reads=st.booleans(),
    )
    def arrive(self, source: str, n: int, persist: bool, reads: bool) -> None:
        self.engine.arrive(source, n, persist, reads)

    @rule(n=PICK, more=st.integers(1, 2))
    def extend(self, n: int, more: int) -> None:
        self.engine.extend(n, more)

    @rule(n=PICK, load=st.booleans())
    def schedule(self, n: int, load: bool) -> None:
        self.engine.schedule(n, load)

    @rule(n=PICK, upto=st.integers(1, 8))
    def load_anything(self, n: int, upto: int) -> None:
        self.engine.load_anything(n, upto)

    @rule(n=PICK, upto=st.integers(1, 8))
    def store(self, n: int, upto: int) -> None:
        self.engine.store(n, upto)

    @rule(n=PICK, failed=st.sets(st.integers(0, 7), max_size=2))
    def finish(self, n: int, failed: set[int]) -> None:
        self.engine.finish(n, failed)

    @rule(n=st.integers(1, 12))
    def churn(self, n: int) -> None:
        self.engine.churn(n)

    @rule(n=PICK)
    def cancel(self, n: int) -> None:
        self.engine.cancel(n)

    @rule(n=PICK)
    def depart(self, n: int) -> None:
        self.engine.depart(n)

    @rule(n=PICK)
    def preempt(self, n: int) -> None:
        self.engine.preempt(n)

    @rule(everybody=st.booleans())
    def reset(self, everybody: bool) -> None:
        self.engine.reset(everybody)

    @rule()
    def drain(self) -> None:
        self.engine.drain()

    @rule()
    def step(self) -> None:
        self.engine.step()

    @rule(n=PICK, rank=PICK, status=st.sampled_from(STATUSES))
    def answer(self, n: int, rank: int, status: OpStatus) -> None:
        self.engine.answer(n, rank, status)

    @rule(free=st.sampled_from(FREE))
    def fill(self, free: int) -> None:
        self.engine.ranks.free = free

    @rule(rank=PICK)
    def die(self, rank: int) -> None:
        self.engine.die(rank)

    @rule(op=st.integers(0, 400), rank=st.integers(0, 3))
    def answer_nothing(self, op: int, rank: int) -> None:
        self.engine.answer_nothing(op, rank)

    @rule(n=PICK, size=st.integers(1, 3))
    def scan(self, n: int, size: int) -> None:
        self.engine.scan(n, size)

    @rule(tier=PICK, rank=PICK, n=PICK)
    def lose(self, tier: int, rank: int, n: int) -> None:
        self.engine.lose(tier, rank, n)

    @rule(seconds=st.sampled_from(WAITS))
    def wait(self, seconds: float) -> None:
        self.engine.clock.now += seconds

    @rule(tokens=st.integers(1, 1000), seconds=st.floats(0.001, 1))
    def learn(self, tokens: int, seconds: float) -> None:
        self.engine.cache.prefilled(tokens, seconds)
        self.engine.cache.transferred(tokens * 1000, seconds)

    @rule()
    def ask(self) -> None:
        self.engine.verify()
        self.engine.ask()

    @invariant()
    def truth(self) -> None:
        if hasattr(self, "engine"):
            self.engine.verify()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.end()


TestBrain = Machine.TestCase
TestBrain.settings = settings(max_examples=100, stateful_step_count=50)


def random_shape(rng: random.Random) -> Shape:
    return Shape(
        ranks=rng.randint(1, 3),
        slots=rng.choice([rng.randint(1, 9), rng.randint(6, 24)]),
        capacity=rng.choice([rng.randint(1, 9), 300]),
        modes=tuple(rng.choices(list(WriteMode), k=rng.choice([0, 1, 1, 1, 1, 2, 2]))),
        hybrid=rng.random() < 0.4,
        prefetch=rng.random() < 0.4,
        watermark=rng.choice([0.0, 0.1, 0.3]),
        asked=rng.random() < 0.3,
        found=tuple((rng.choice(NAMES), rng.randrange(8)) for _ in range(rng.choice([0, 8, 40]))),
        overlap=rng.random() < 0.5,
    )


def random_calls(engine: Engine, rng: random.Random) -> list[tuple[int, Callable[[], object]]]:
    """List what may happen next, with weights like those of a real engine."""

    def pick() -> int:
        return rng.randrange(30)

    return [
        (12, lambda: engine.arrive(rng.choice(NAMES), rng.randint(1, 8), rng.random() < 0.9)),
        (4, lambda: engine.extend(pick(), rng.randint(1, 2))),
        (20, lambda: engine.schedule(pick(), rng.random() < 0.8)),
        (1, lambda: engine.load_anything(pick(), rng.randint(1, 8))),
        (12, lambda: engine.store(pick(), rng.randint(1, 9))),
        (20, lambda: engine.finish(pick(), {pick()} if rng.random() < 0.2 else set())),
        (8, lambda: engine.churn(rng.randint(1, 12))),
        (1, lambda: engine.cancel(pick())),
        (8, lambda: engine.depart(pick())),
        (1, lambda: engine.preempt(pick())),
        (rng.random() < 0.2, lambda: engine.reset(rng.random() < 0.3)),
        (16, lambda: engine.drain()),
        (6, lambda: engine.step()),
        (40, lambda: engine.answer(pick(), pick(), rng.choice(STATUSES))),
        (2, lambda: setattr(engine.ranks, "free", rng.choice(FREE))),
        (1, lambda: engine.die(pick())),
        (1, lambda: engine.answer_nothing(rng.randrange(400), rng.randrange(4))),
        (10, lambda: engine.scan(pick(), rng.randint(1, 3))),
        (1, lambda: engine.lose(pick(), pick(), pick())),
        (4, lambda: setattr(engine.clock, "now", engine.clock.now + rng.choice(WAITS))),
        (1, lambda: engine.cache.prefilled(rng.randint(1, 1000), rng.uniform(0.001, 1))),
    ]


@pytest.mark.parametrize("seed", range(60))
def test_the_brain_never_lies_on_long_walks(seed: int) -> None:
    rng = random.Random(seed)
    evictions, admissions = sorted(EVICTION), ["always", *sorted(ADMISSION)]
    shape = random_shape(rng)._replace(
        eviction=evictions[seed % len(evictions)], admission=admissions[seed % len(admissions)]
    )
    engine = Engine(shape)
    if shape.overlap:
        engine.slow_copies(rng.choice([0.1, 10]))
    calls = random_calls(engine, rng)
    weights = [weight for weight, _ in calls]
    for _ in range(400):
        _, call = rng.choices(calls, weights)[0]
        call()
        engine.verify()
    engine.ask()
    engine.end()


def crowd_calls(engine: Engine, rng: random.Random) -> list[tuple[float, Callable[[], object]]]:
    """List what happens where a few long prefixes are asked for again and again, and DRAM holds two at most."""

    def pick() -> int:
        return rng.randrange(30)

    def status() -> OpStatus:
        return rng.choice(STATUSES) if rng.random() < 0.1 else OpStatus.OK

    return [
        (6, lambda: engine.arrive(rng.choice(NAMES), rng.randint(3, 8), True)),
        (30, lambda: engine.schedule(pick(), rng.random() < 0.8)),
        (8, lambda: engine.finish(pick(), set())),
        (3, lambda: engine.depart(pick())),
        (1, lambda: engine.cancel(pick())),
        (16, lambda: engine.drain()),
        (20, lambda: engine.answer(pick(), pick(), status())),
        (4, lambda: engine.store(pick(), rng.randint(1, 9))),
        (3, lambda: engine.churn(rng.randint(1, 6))),
        (6, lambda: setattr(engine.clock, "now", engine.clock.now + rng.choice(SHORT_WAITS))),
        (0.2, lambda: engine.reset(True)),
        (0.3, lambda: engine.preempt(pick())),
        (3, lambda: engine.scan(pick(), 9)),
    ]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(140, 170))
def test_nobody_waits_for_ever_where_hits_crowd(seed: int, overlap: bool) -> None:
    rng = random.Random(seed)
    shape = Shape(
        slots=rng.randint(6, 20),
        capacity=300,
        modes=(WriteMode.IDLE,) * rng.randint(1, 2),
        watermark=0.0,
        hybrid=rng.random() < 0.3,
        ranks=rng.randint(1, 2),
        found=tuple((name, i) for name in NAMES for i in range(8)),
        overlap=overlap,
    )
    engine = started(shape)
    if overlap:
        engine.slow_copies(rng.choice([0.1, 10]))
    calls = crowd_calls(engine, rng)
    weights = [weight for weight, _ in calls]
    for _ in range(500):
        _, call = rng.choices(calls, weights)[0]
        call()
        engine.verify()
    engine.ask()
    engine.end()
