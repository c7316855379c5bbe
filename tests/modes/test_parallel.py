"""An engine of several ranks, each with its part of every chunk."""

from pathlib import Path

from tests.engine.conftest import EngineFactory
from tests.modes import tiny
from tests.modes.identity import Mode, check


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
