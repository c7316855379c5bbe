"""A request that is preempted while a step of it is in flight may end with that step: its blocks are others' by then."""

from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.outputs import ModelRunnerOutput

from kvtier.connectors.vllm import increments
from tests.connectors import scheduler

BLOCK = 16


def end(engine: Any, out: Any) -> None:
    """Give the output of a step: a token for each request."""
    names = list(out.num_scheduled_tokens)
    result = ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: i for i, name in enumerate(names)},
        sampled_token_ids=[[1] for _ in names],
        kv_connector_output=engine._told(out.kv_connector_metadata),
    )
    engine.scheduler.update_from_output(out, result)


def begin(engine: Any) -> Any:
    """Begin a step, whose output is not awaited."""
    engine._steps += 1
    return engine.scheduler.schedule()


def test_nothing_is_stored_of_who_ends_preempted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scheduler.engine(blocks=1 + 4 + 3, chunk_tokens=BLOCK, slots=64)
    engine.add("long", 4 * BLOCK - 1)
    end(engine, begin(engine))
    decode = begin(engine)  # the last that fits into its blocks
    monkeypatch.setattr(
        increments, "_MOST_OFFERED", 0
    )  # stored is who ends, as where there was no room
    engine.add("short", 3 * BLOCK, max_tokens=1)
    prefill = begin(engine)
    end(engine, decode)
    needy = begin(engine)
    assert needy.preempted_req_ids == {"short"}
    end(engine, prefill)
    assert "short" not in engine.scheduler.requests, "it has ended"
    end(engine, needy)
    last = begin(engine)
    assert "short" in last.finished_req_ids
    assert not last.kv_connector_metadata.store_jobs, "of blocks that others have"


def test_who_starts_again_is_stored() -> None:
    engine = scheduler.engine(blocks=1 + 4 + 3, chunk_tokens=BLOCK, slots=64)
    engine.add("long", 4 * BLOCK - 1, max_tokens=3)
    engine.step()
    engine.add("short", 3 * BLOCK, max_tokens=2 * BLOCK)
    engine.run(2)
    assert engine.scheduler.requests["short"].num_preemptions
    stored = set()
    for _ in range(3 * BLOCK):
        engine.step()
        stored |= {job.req_id for job in engine.meta.store_jobs.values()}
    assert "short" not in engine.scheduler.requests
    assert "short" in stored
