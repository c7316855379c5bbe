"""kvtier as one of several connectors: whatever the others say at the start, in any order, and beside another kvtier."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvtier.demo.server import kv_transfer_config
from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, Reference, dram, nvme

LONG = prompts(4, 1500, seed=61)
ASKED_OF_LLAMA = LONG

NIXL_LIKE = {
    "kv_connector": "HandshakeConnector",
    "kv_connector_module_path": "tests.engine.handshake",
    "kv_role": "kv_both",
}
Connectors = list[Mapping[str, Any]]


def example(folder: Path) -> Mapping[str, Any]:
    return {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder / "example")},
    }


CASES: dict[str, Callable[[Path], Connectors]] = {
    "before NIXL": lambda folder: [kv_transfer_config(dram()), NIXL_LIKE],
    "behind NIXL": lambda folder: [NIXL_LIKE, kv_transfer_config(nvme(folder / "nvme"))],
    "before another": lambda folder: [kv_transfer_config(dram()), example(folder)],
    "two": lambda folder: [
        kv_transfer_config(dram("10MiB")),
        kv_transfer_config(nvme(folder / "nvme")),
    ],
}


@pytest.fixture(params=CASES)
def running(
    request: pytest.FixtureRequest,
    reference: Reference,
    engine: EngineFactory,
    llama: Path,
    tmp_path: Path,
) -> Engine:
    several = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": CASES[request.param](tmp_path)},
    }
    options: dict[str, Any] = {"kv_transfer_config": several}
    if request.param == "before another":
        options["disable_hybrid_kv_cache_manager"] = True
    tp = 2 if request.param == "behind NIXL" else 1
    return engine(EngineConfig(model=llama, blocks=20, tp=tp, options=options))


def test_answers_are_right_and_what_was_stored_is_loaded(
    running: Engine, reference: Reference
) -> None:
    for _ in range(2):
        for prompt in LONG:
            assert running.generate([prompt], TOKENS) == reference.of([prompt])
    told = running.metrics()
    assert told["kvtier:loaded_chunks_total"] > 0
    assert told.get("kvtier:off", 0) == 0
