"""An engine of several ranks, each with its part of every chunk."""

from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.modes import tiny
from tests.modes.identity import Mode, check

CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}

ENGINES = {
    "tensor parallel": Mode(tp=2),
    # vLLM's CPU build alone runs no pipeline with runner V1
    "pipeline": Mode(
        lane="v2-sync", options={"pipeline_parallel_size": 2}, env=CORES, length=300, tokens=6
    ),
    "asynchronous pipeline": Mode(
        lane="v2-async", options={"pipeline_parallel_size": 2}, env=CORES, length=300, tokens=6
    ),
}


@pytest.mark.parametrize("name", ENGINES)
def test_two_ranks(name: str, engine: EngineFactory, tmp_path: Path) -> None:
    check(engine, ENGINES[name], tiny.make(tmp_path, "llama"), tmp_path / "kv")
