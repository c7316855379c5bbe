"""Nobody runs without kvtier and does not know it: a start that would be one is refused, a good one says so."""

from pathlib import Path
from typing import Any

import pytest

from kvtier.doctor.engines import SIGN_OF_LIFE
from tests.engine.conftest import EngineFactory
from tests.engine.harness import EngineConfig, EngineError
from tests.engine.scenarios import dram


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_offloading_size": 1.0}, "--kv-offloading-size: with it vLLM runs its own offload"),
        ({"kv_tier": dram()}, "kv_tier: unknown key (did you mean 'kvtier'?)"),
    ],
)
def test_a_start_without_kvtier_is_refused(
    options: dict[str, Any], words: str, engine: EngineFactory, llama: Path
) -> None:
    transfer = {"kv_connector": "KVTierConnector", "kv_role": "kv_both"}
    if "kv_tier" in options:
        options = {"kv_transfer_config": {**transfer, "kv_connector_extra_config": options}}
    with pytest.raises(EngineError) as refused:
        engine(EngineConfig(model=llama, kvtier=dram(), options=options))
    assert words in str(refused.value)


def test_a_mistake_in_the_yaml_is_the_last_line_and_nothing_was_started(
    engine: EngineFactory, llama: Path
) -> None:
    tiers = [{"kind": "dram", "capcity": "64MiB"}]
    with pytest.raises(EngineError) as refused:
        engine(EngineConfig(model=llama, kvtier={"tiers": tiers}))
    said = str(refused.value)
    line = "kvtier.errors.KvtierError: tiers[0].capcity: unknown key (did you mean 'capacity'?)"
    assert line in said.splitlines()
    assert said.count("Traceback") == 1
    assert "EngineCore pid" not in said


def test_a_start_with_kvtier_says_so(engine: EngineFactory, llama: Path) -> None:
    started = engine(EngineConfig(model=llama, kvtier=dram()))
    assert started.log.read_text().count(SIGN_OF_LIFE) == 1
