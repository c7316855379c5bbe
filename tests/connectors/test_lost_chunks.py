"""Every kind of KV cache when chunks of a hit are gone by the time of its load: what is read is what was computed."""

import errno
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from kvtier.brain import LoadPlan
from kvtier.transfer.cpu import CpuTransferEngine
from kvtier.transfer.page_map import Work
from kvtier.types import NO_SLOT, BlockKey
from tests.connectors.no_model import NoModelEngine
from tests.connectors.test_caches import MODELS, _start
from tests.engine.models import prompts

ASKED = prompts(6, 200, seed=7)


def lose(engine: NoModelEngine, gone: Callable[[int], Sequence[int]]) -> list[str]:
    """Let each load find some of its chunks gone, of so many; return who loads."""
    brain, loading = engine.connector.scheduling.brain, []
    plan_load = brain.plan_load

    def planned(request: str, keys: Sequence[BlockKey]) -> LoadPlan:
        loading.append(request)
        plan: LoadPlan = plan_load(request, keys)
        slots = list(plan.slots)
        for position in gone(len(slots)):
            slots[position] = NO_SLOT
        return plan._replace(slots=tuple(slots))

    brain.plan_load = planned
    return loading


@pytest.mark.parametrize("model", MODELS)
def test_any_part_of_a_load(model: str, tmp_path: Path) -> None:
    rng = random.Random(8)
    with _start(MODELS[model], tmp_path) as engine:
        engine.ask(*ASKED)
        engine.reset()
        lose(engine, lambda n: rng.choice(([], [0], [n - 1], [rng.randrange(n)])))
        for _ in range(3):
            engine.ask(*ASKED)
            engine.reset()
        engine.connector.scheduling.brain.check()
        assert not engine.connector.scheduling.guard.broken


@pytest.mark.parametrize("direction", ["_onload", "_offload"])
@pytest.mark.parametrize("model", ["full attention", "windows", "states and windows"])
def test_copies_that_fail(
    model: str, direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, failed = random.Random(9), 0
    copy = getattr(CpuTransferEngine, direction)

    def fails(engine: CpuTransferEngine, work: Work) -> None:
        nonlocal failed
        if rng.random() < 0.3:
            failed += 1
            raise OSError(errno.EFAULT, "a copy that fails")
        copy(engine, work)

    monkeypatch.setattr(CpuTransferEngine, direction, fails)
    with _start(MODELS[model], tmp_path) as engine:
        for _ in range(4):
            engine.ask(*ASKED)
            engine.reset()
        engine.connector.scheduling.brain.check()
        assert not engine.connector.scheduling.guard.broken
        assert not any(worker.rank.guard.broken for worker in engine.workers)
    assert failed


@pytest.mark.parametrize("model", ["windows and full attention", "states alone"])
def test_who_starts_again_after_a_load_computes(model: str, tmp_path: Path) -> None:
    """vLLM keeps blocks free for whoever loads, also when that has failed: nobody could load ever again."""
    with _start(MODELS[model], tmp_path) as engine:
        engine.ask(*ASKED)
        engine.reset()
        loading = lose(engine, lambda _: [0])
        engine.ask(*ASKED)
        assert len(loading) == len(set(loading)) == len(ASKED)
        refused = engine.connector.scheduling.brain.stats().load_refusals
        assert refused["failed"] == len(ASKED)
