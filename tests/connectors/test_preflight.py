"""What is refused, and what is warned of, before any process of vLLM starts."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

import vllm
from vllm.config import CacheConfig, KVTransferConfig, VllmConfig

from kvtier import releases
from kvtier.connectors.vllm import plugin, preflight
from kvtier.errors import KvtierError

OURS = {"kv_connector": "KVTierConnector", "kv_role": "kv_both"}
THEIRS = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
FAILING = {"kv_connector": "MultiConnector", "kv_role": "kv_both"}
DRAM = {"tiers": [{"kind": "dram", "capacity": "64MiB"}]}
TYPO = {"tiers": [{"kind": "dram", "capcity": "64MiB"}]}
FAR = {"tiers": [*DRAM["tiers"], {"kind": "file", "path": "/not/there/kv", "capacity": "1GiB"}]}
MIXED = {**FAILING, "kv_load_failure_policy": "recompute"}


@pytest.fixture(autouse=True)
def _registered() -> None:
    plugin.register()
    plugin.register()


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What vLLM's logger says, whoever listens to it."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                said.append(record.getMessage())

    listener = Listener()
    logger = logging.getLogger("vllm.kvtier")
    logger.addHandler(listener)
    yield said
    logger.removeHandler(listener)


def told(connector: dict[str, str], extra: object = None, size: float | None = None) -> str | None:
    """Tell vLLM to run a connector; return which it takes."""
    transfer = KVTransferConfig(**connector, kv_connector_extra_config=extra or {})
    caches = CacheConfig(kv_offloading_size=size)
    made = VllmConfig(cache_config=caches, kv_transfer_config=transfer)
    chosen: str | None = made.kv_transfer_config.kv_connector
    return chosen


def both(**extra: object) -> dict[str, object]:
    return {"connectors": [THEIRS, {**OURS, "kv_connector_extra_config": extra}]}


def test_what_is_well_starts() -> None:
    assert told(OURS) == told(OURS, {"kvtier": DRAM}) == "KVTierConnector"
    assert told(MIXED, both(kvtier=DRAM)) == "MultiConnector"
    assert told(THEIRS, {"cpu_bytes_to_use": 1 << 30}, size=1.0) == "OffloadingConnector"


@pytest.mark.parametrize(("connector", "extra"), [(OURS, None), (MIXED, both())])
def test_vllms_own_offload_does_not_take_the_place_of_kvtier(
    connector: dict[str, str], extra: object
) -> None:
    with pytest.raises(KvtierError, match=r"--kv-offloading-size: .* in place of KVTierConnector"):
        told(connector, extra, size=1.0)


@pytest.mark.parametrize(
    ("connector", "extra", "words"),
    [
        (OURS, {"kv_tier": DRAM}, r"kv_tier: unknown key \(did you mean 'kvtier'\?\)"),
        (MIXED, both(tiers=[]), r"tiers: unknown key \(did you mean 'kvtier'\?\)"),
        (OURS, {"spec_name": "CPUOffloadingSpec"}, "kvtier brings its own"),
        (THEIRS, {"kvtier": DRAM}, "'OffloadingConnector' does not run kvtier"),
        (THEIRS, {"spec_name": "KVTierSpec"}, "'OffloadingConnector' does not run kvtier"),
        (
            OURS,
            {"kvtier": TYPO},
            r"^tiers\[0\].capcity: unknown key \(did you mean 'capacity'\?\)$",
        ),
        (MIXED, both(kvtier=TYPO), r"^tiers\[0\].capcity: unknown key"),
        (OURS, {"kvtier": "/not/there.yaml"}, r"^/not/there.yaml: cannot be read: No such file"),
        (OURS, {"kvtier": FAR}, "^tiers\\[1\\].path: there is no directory"),
    ],
)
def test_what_would_not_run_as_written_is_refused(
    connector: dict[str, str], extra: object, words: str
) -> None:
    with pytest.raises(KvtierError, match=words):
        told(connector, extra)


def test_an_unknown_release_is_one_line(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    told(OURS)
    monkeypatch.setattr(vllm, "__version__", "0.99.1")
    told(THEIRS)
    assert warnings == []
    told(OURS)
    told(MIXED, both())
    (line,) = warnings
    assert "vLLM 0.99.1" in line
    assert releases.SUPPORTED in line


def test_loads_whose_failure_ends_a_request_are_one_line(warnings: list[str]) -> None:
    told(OURS)
    told(MIXED, both())
    told(FAILING, {"connectors": [THEIRS]})
    assert warnings == []
    for _ in range(2):
        told(FAILING, both())
    (line,) = warnings
    assert "set 'recompute' beside MultiConnector" in line


@pytest.mark.parametrize("version", ["dev", "0.34.1.dev3+g1234", "1", ""])
def test_what_is_no_known_version_is_not_supported(version: str) -> None:
    assert not releases.supported(version)


def test_a_configuration_that_cannot_be_looked_at_still_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preflight, "_connectors", lambda transfer: 1 / 0)
    assert told(OURS) == "KVTierConnector"
    assert "was not looked at" in caplog.text


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"nnodes": 2, "node_rank": 0, "tensor_parallel_size": 2},
        {"data_parallel_size": 2, "data_parallel_size_local": 0},
        {"data_parallel_size": 2, "data_parallel_backend": "ray"},
    ],
    ids=["nodes", "no engine here", "ray"],
)
def test_directories_of_other_machines_are_not_looked_for_here(elsewhere: dict[str, Any]) -> None:
    from vllm.config import ParallelConfig

    transfer = KVTransferConfig(**OURS, kv_connector_extra_config={"kvtier": FAR})
    parallel = ParallelConfig(distributed_executor_backend="mp", **elsewhere)
    VllmConfig(parallel_config=parallel, kv_transfer_config=transfer)
