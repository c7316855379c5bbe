"""An engine of several ranks, each with its part of every chunk."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.modes import tiny
from tests.modes.identity import Mode, Told, check, rest
from tests.modes.test_models import has_amx


def test_a_pipeline(engine: EngineFactory, tmp_path: Path) -> None:
    """With runner V1, vLLM's CPU build alone runs none."""
    mode = Mode(
        lane="v2-async",
        options={"pipeline_parallel_size": 2},
        env={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        length=300,  # an interpreter computes it
        tokens=6,
    )
    check(engine, mode, tiny.make(tmp_path, "llama"), tmp_path / "kv")


def test_tensor_parallel_after_a_restart(
    engine: EngineFactory, llama: Path, tmp_path: Path
) -> None:
    """The answers are those of one rank, and both ranks have files of their own."""
    mode = Mode(tp=2, options={"load_format": "auto"})  # each rank has its part of one checkpoint
    right = mode.at_once(engine(replace(mode, tp=1).alone(llama))).answers
    for cached in (0, 512):
        running = engine(mode.below(llama, tmp_path / "kv"))
        running.call("tests.engine.faults:settle")
        assert mode.at_once(running) == Told(right, [cached] * 3)
        rest(running)
        if cached:
            running.call("tests.modes.inside:shift", running.call("tests.modes.inside:slots", 0))
            wrong = mode.at_once(running)
            assert (wrong.answers != right, wrong.cached) == (True, [cached] * 3)
        running.close()
    assert {path.parents[1].name for path in (tmp_path / "kv").rglob("*.kvt")} == {"r0", "r1"}


@pytest.mark.skipif(not has_amx(), reason="vLLM's kernels for latent attention need AMX")
def test_latent_attention_after_a_restart(engine: EngineFactory, tmp_path: Path) -> None:
    """Both ranks have the same KV: one keeps the records that both read."""
    mode = Mode(tp=2, options={"dtype": "bfloat16"})
    model = tiny.make(tmp_path, "deepseek-v2")
    alone = engine(mode.alone(model))
    cold, own = mode.one_by_one(alone), mode.one_by_one(alone)
    for right, cached in ((cold, 0), (own, 512)):
        running = engine(mode.below(model, tmp_path / "kv"))
        running.call("tests.engine.faults:settle")
        assert mode.one_by_one(running) == right == Told(right.answers, [cached] * 3)
        rest(running)
        running.close()
    assert {path.parents[1].name for path in (tmp_path / "kv").rglob("*.kvt")} == {"r0"}
