"""What fault tests do inside the engine's process, called by `Engine.call`: look at the brain, empty tier 0."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from kvtier.brain import LoadPlan, TieredCache
from kvtier.brain.cost import Pace, ReadCost
from kvtier.types import NO_SLOT, BlockKey
from tests.engine.driver import Driver
from tests.patience import HANG_S

FILLER = [3, 1, 4]  # too short for a chunk: it only makes the engine step


def core_of(llm: Any) -> Any:
    """The EngineCore of an engine whose scheduler runs in this process."""
    return llm.llm_engine.engine_core.engine_core


def brain_of(llm: object) -> TieredCache:
    """The brain of an engine whose scheduler runs in this process, where nobody steps it while it is idle."""
    core = core_of(llm)
    side = core.scheduler.connector.scheduling
    for _ in range(4):
        if side.unopened():
            core.step_fn()  # in which the ranks say hello
    brain = side.brain
    assert isinstance(brain, TieredCache)
    return brain


def check_brain(llm: object) -> None:
    """Assert every invariant of the brain."""
    brain_of(llm).check()


def tier0(llm: object) -> int:
    """How many chunks tier 0 holds."""
    return brain_of(llm).stats().tiers[0].chunks


def step_until(llm: Any, done: Callable[[], object]) -> None:
    """Make the engine step until `done` is true, and once more: metrics follow at the next step.

    After HANG_S it stops all the same; the caller says what is missing.
    """
    end = time.monotonic() + HANG_S
    while not done() and time.monotonic() < end:
        nudge(llm)
    nudge(llm)


def nudge(llm: Any) -> None:
    """Ask the least that makes the engine step."""
    if llm.model_config.runner_type == "pooling":
        llm.embed([{"prompt_token_ids": FILLER}], use_tqdm=False)
    else:
        Driver(llm).generate([FILLER], 1, {})


def settle(llm: Any) -> list[str]:
    """Step until all that was ordered is done and every tier serves; return what is not done in time."""
    step_until(llm, lambda: not brain_of(llm).view.pending())
    return brain_of(llm).view.pending()


def cool(llm: object) -> None:
    """Send everything down from tier 0."""
    brain = brain_of(llm)
    brain._demotion.make_room(brain.stats().slots)


def slow_copies(llm: object, seconds: float) -> None:
    """Have the brain believe, whatever it sees, that a chunk's copy to the device takes so long."""
    costs, (group,) = brain_of(llm)._state.costs, brain_of(llm).view.groups
    costs.load = Pace(lambda: 0.0)
    costs.load.add(group.nbytes * 1e9, seconds * 1e9)


def awaited(llm: object) -> list[int]:
    """Number the chunks of prefixes that loads under way wait for."""
    brain = brain_of(llm)
    tokens, fills = brain.view.groups[0].chunk_tokens, brain._promotion.fills
    plans = brain._copies.plans.values()
    return [brain.view.end(k) // tokens - 1 for plan in plans for k in plan.coming if k in fills]


def trust(llm: object) -> None:
    """Forget what reading and computing cost: whatever was slow before is read again."""
    core = brain_of(llm)._state
    core.costs.prefill = Pace(core.clock)
    for lower in core.lowers:
        lower.cost = ReadCost(core.clock)


def holder(llm: object) -> bool:
    """Whether a request holds slots and waits for more."""
    return brain_of(llm)._promotion.turns.holder is not None


def lose(llm: object, chunk: int) -> None:
    """Let one chunk of the next load be gone when it is to be copied."""
    brain = brain_of(llm)
    plan = brain.plan_load

    def once(request: str, keys: Sequence[BlockKey]) -> LoadPlan:
        brain.plan_load = plan  # type: ignore[method-assign]  # as it was
        found = plan(request, keys)
        slots = [NO_SLOT if i == chunk else slot for i, slot in enumerate(found.slots)]
        return found._replace(slots=tuple(slots))

    brain.plan_load = once  # type: ignore[method-assign]  # for once
