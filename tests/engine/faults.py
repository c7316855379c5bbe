"""What fault tests do inside the engine's process, called by `Engine.call`: look at the brain, empty tier 0."""

import time

from kvtier.brain import TieredCache
from kvtier.brain.cost import Pace, ReadCost
from tests.engine.driver import Driver

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


def settle(llm: object, timeout_s: float = 40.0) -> list[str]:
    """Step until all that was ordered is done and every tier serves; return what is not done in time."""
    deadline = time.monotonic() + timeout_s
    driver = Driver(llm)
    while (left := brain_of(llm).view.pending()) and time.monotonic() < deadline:
        driver.generate([FILLER], 1, {})
    driver.generate([FILLER], 1, {})  # metrics follow at the next step
    return left


def cool(llm: object) -> None:
    """Send everything down from tier 0."""
    brain = brain_of(llm)
    brain._demotion.make_room(brain.stats().slots)


def trust(llm: object) -> None:
    """Forget what reading and computing cost: whatever was slow before is read again."""
    core = brain_of(llm)._state
    core.costs.prefill = Pace(core.clock)
    for lower in core.lowers:
        lower.cost = ReadCost(core.clock)
