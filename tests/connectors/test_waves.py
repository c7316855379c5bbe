"""Hits larger than half of DRAM, from a slow file tier: they come in waves, whole and right, and leave nothing behind."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.request import RequestStatus

from tests.connectors.no_model import NoModelEngine
from tests.connectors.test_caches import BLOCK, MODELS
from tests.engine.models import prompts
from tests.engine.scenarios import nvme
from tests.modes import tiny
from tests.patience import until

PROMPTS = prompts(4, 200, seed=11)
DRAM = {  # what a hit of 192 tokens takes is more than half of it, and less than all
    "full attention": "320KiB",  # 10 chunks of 32 KiB, 6 of them a hit's
    "windows and full attention": "448KiB",  # 14, and 10: six of the full group, two of each window's
}


@pytest.fixture(params=DRAM)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NoModelEngine]:
    """An engine that finds every prompt on a disk whose reads take their time."""
    model, dram = MODELS[request.param], DRAM[request.param]
    control = tmp_path / "control.json"
    control.write_text("{}")
    faulty: Any = [{"kind": "faulty", "control": str(control)}]
    kvtier = nvme(
        tmp_path / "kv", dram_capacity=dram, write="through", wrappers=faulty, depth=2
    ) | {"chunk_tokens": 2 * BLOCK}
    folder = tiny.make(tmp_path, model.family)
    with closing(NoModelEngine(folder, model.specs, kvtier, blocks=512)) as first:
        first.settle()
        for prompt in PROMPTS:
            first.ask(prompt)
            first.settle()
    with closing(NoModelEngine(folder, model.specs, kvtier, blocks=512)) as made:
        made.settle()
        control.write_text(json.dumps({"read_delay_s": 0.1}))
        yield made
        made.settle()
        brain = made.connector.scheduling.brain
        brain.check()
        stats = brain.stats()
        assert stats.pinned == stats.reading == stats.quarantined_slots == 0


def in_a_wave(engine: NoModelEngine) -> str:
    """Ask for a prompt, and stop where some of its chunks are there and others are not ordered yet."""
    request = engine.queue(PROMPTS[0], 4)
    brain = engine.connector.scheduling.brain

    def there() -> bool:
        return brain._promotion.turns.holder is not None and brain.stats().pinned > 0

    until(there, "it holds some chunks and waits for more", engine.step)
    return str(request.request_id)


def test_a_hit_of_more_than_half_of_dram_is_served_whole(engine: NoModelEngine) -> None:
    assert engine.ask(PROMPTS[0]) == [192]


def test_hits_that_do_not_fit_together_are_served_whole(engine: NoModelEngine) -> None:
    assert engine.ask(*PROMPTS) == [192] * 4
    assert not engine.connector.scheduling.brain.stats().load_refusals


def test_an_abort_in_the_middle_of_a_wave_leaves_nothing(engine: NoModelEngine) -> None:
    name = in_a_wave(engine)
    engine.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
    assert engine.connector.scheduling.brain.stats().pinned == 0
    assert engine.ask(PROMPTS[0]) == [192]


@pytest.mark.parametrize("running", [False, True])
def test_a_reset_in_the_middle_of_a_wave_leaves_nothing(
    engine: NoModelEngine, running: bool
) -> None:
    name = in_a_wave(engine)
    assert engine.scheduler.reset_prefix_cache(running, reset_connector=True)
    assert engine.connector.scheduling.brain.stats().pinned == 0
    until(lambda: name in engine._cached, "it is computed", engine.step)
    assert engine._cached[name] == 0, "what was stored before the reset is gone"
