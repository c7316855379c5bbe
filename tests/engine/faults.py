"""What fault tests do inside the engine's process, called by `Engine.call`: look at the brain, empty tier 0."""

import time
from collections.abc import Callable

from kvtier.brain.cost import Pace, ReadCost
from kvtier.cache import TieredCache
from tests.engine.driver import Driver
from tests.patience import HANG_S

FILLER = [3, 1, 4]  # too short for a chunk: it only makes the engine step


def brain_of(llm: object) -> TieredCache:
    """The brain of an engine whose scheduler runs in this process."""
    core = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined] # vLLM is untyped here
    brain = core.scheduler.connector.scheduling.brain
    assert isinstance(brain, TieredCache)
    return brain


def check_brain(llm: object) -> None:
    """Assert every invariant of the brain."""
    brain_of(llm).check()


def tier0(llm: object) -> int:
    """How many chunks tier 0 holds."""
    return brain_of(llm).stats().tiers[0].chunks


def step_until(llm: object, done: Callable[[], object]) -> None:
    """Make the engine step until `done` is true, and once more: metrics follow at the next step.

    After HANG_S it stops all the same; the caller says what is missing.
    """
    end = time.monotonic() + HANG_S
    driver = Driver(llm)
    while not done() and time.monotonic() < end:
        driver.generate([FILLER], 1, {})
    driver.generate([FILLER], 1, {})


def settle(llm: object) -> list[str]:
    """Step until all that was ordered is done and every tier serves; return what is not done in time."""
    step_until(llm, lambda: not _undone(brain_of(llm)))
    return _undone(brain_of(llm))


def cool(llm: object) -> None:
    """Send everything down from tier 0."""
    brain = brain_of(llm)
    brain._demotion.make_room(brain._ledger.slots.n)


def trust(llm: object) -> None:
    """Forget what reading and computing cost: whatever was slow before is read again."""
    core = brain_of(llm)._core
    core.costs.prefill = Pace(core.clock)
    for lower in core.lowers:
        lower.cost = ReadCost(core.clock)


def _undone(brain: TieredCache) -> list[str]:
    found = [f"{flight.op.kind.name}" for flight in brain._core.flights.all()]
    found += ["a copy"] * len(brain._copying.plans)
    found += ["a scan" for keeper in brain._keepers if keeper._scan is not None]
    for lower in brain._core.lowers:
        if not lower.serving:
            found.append(f"{lower.spec.name} is {lower.phase}, {lower.breaker.state}")
        found += ["a removal"] * len(lower.doomed)
        found += ["a write"] * len(brain._demotion._backlog.get(lower.tier, ()))
    return found
