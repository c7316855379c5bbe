"""Memory above files, as two lower tiers of one brain: who gets what, who is asked first, what a death costs."""

import pytest

from kvtier.types import OpKind, WriteMode
from tests.brain.fake_engine import Engine, Shape, arrive, started, stored
from tests.brain.fake_ranks import chain

MEMORY, FILE = 1, 2


@pytest.fixture
def made() -> Engine:
    return started(Shape(slots=8, capacity=64, modes=(WriteMode.ON_EVICT, WriteMode.IDLE)))


def holds(made: Engine, tier: int, name: str) -> int:
    return sum(made.cache.view.holds(tier, key) for key in chain(name, 3))


def test_files_are_written_behind_and_memory_when_slots_are_needed(made: Engine) -> None:
    stored(made, chain("a", 3))
    made.ranks.settle()
    assert holds(made, FILE, "a") == 3
    for name in "bcdef":
        stored(made, chain(name, 3))
        made.ranks.settle()
    assert holds(made, MEMORY, "a") == 3
    made.verify()


def test_memory_is_read_before_files_and_files_once_it_is_empty(made: Engine) -> None:
    for name in "abcdef":
        stored(made, chain(name, 3))
        made.ranks.settle()
    assert holds(made, MEMORY, "a") == holds(made, FILE, "a") == 3
    assert read(made, "a") == {MEMORY}
    for key in list(made.ranks.ranks[0].records[MEMORY]):  # its process died
        del made.ranks.ranks[0].records[MEMORY][key]
        made.ranks.lost.add((0, MEMORY, key))
    tiers = [read(made, "b") for _ in range(4)]
    assert MEMORY in tiers[0]  # each record is a miss once
    assert {FILE} in tiers
    assert not any(MEMORY in each for each in tiers[tiers.index({FILE}) :])
    made.verify()


def read(made: Engine, name: str) -> set[int]:
    """Ask for a prefix and return the tiers that reads went to."""
    made.ranks.sent.clear()
    arrive(made, f"again-{name}-{made.clock.now}", chain(name, 3))
    made.clock.now += 1
    request = f"again-{name}-{made.clock.now - 1}"
    for _ in range(3):  # waves
        made.cache.plan_read(request, chain(name, 3))
        made.ranks.settle()
    made.cache.depart(request)
    return {op.tier for op in made.ranks.sent if op.kind is OpKind.READ}
