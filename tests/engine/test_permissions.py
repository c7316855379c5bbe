"""What an engine may do by its `kv_role`, and a request by vLLM's own keys of `kv_transfer_params`: asked of real engines."""

from pathlib import Path
from typing import Any

from kvtier.demo.server import kv_transfer_config
from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, nvme

WHOLE, SHORT, NEW = prompts(3, 600, seed=81)  # four chunks of 128 tokens and more
CPU, STORAGE = {"kv_load_tiers": [{"medium": "CPU"}]}, {"kv_load_tiers": [{"medium": "STORAGE"}]}


def engine_of(role: str, path: Path, llama: Path, engine: EngineFactory) -> Engine:
    transfer = kv_transfer_config(nvme(path, write="through") | {"chunk_tokens": 128})
    options = {"kv_transfer_config": transfer | {"kv_role": role}}
    return engine(EngineConfig(model=llama, in_process=True, options=options))


def ask(engine: Engine, prompt: list[int], **params: object) -> tuple[list[int], int]:
    """Ask with an empty device: the answer, and how many tokens came from kvtier."""
    assert engine.reset()
    args: list[Any] = [[prompt], params, TOKENS]
    ((tokens, cached),) = engine.call("tests.engine.inside:hinted", *args)
    assert engine.call("tests.engine.faults:settle") == []
    return tokens, cached


def test_a_producer_only_stores_and_a_consumer_only_loads(
    engine: EngineFactory, llama: Path, tmp_path: Path
) -> None:
    producer = engine_of("kv_producer", tmp_path, llama, engine)
    right, cached = ask(producer, WHOLE)
    assert (cached, ask(producer, WHOLE)) == (0, (right, 0))
    short, _ = ask(producer, SHORT, max_offload_tokens=300)
    assert producer.metrics().get("kvtier:stored_chunks_total", 0) > 4
    assert producer.metrics().get("kvtier:loaded_chunks_total", 0) == 0

    consumer = engine_of("kv_consumer", tmp_path, llama, engine)
    assert ask(consumer, WHOLE, **CPU) == (right, 0)
    assert ask(consumer, WHOLE, **STORAGE, max_load_tokens=300) == (right, 256)
    assert ask(consumer, WHOLE, **CPU) == (right, 256)
    assert ask(consumer, WHOLE, **STORAGE) == (right, 512)
    assert ask(consumer, WHOLE, **CPU) == (right, 512)
    assert ask(consumer, WHOLE, kv_load_tiers=[]) == (right, 0)
    assert ask(consumer, SHORT) == (short, 256)
    new, cached = ask(consumer, NEW)
    assert (cached, ask(consumer, NEW)) == (0, (new, 0))
    assert consumer.metrics().get("kvtier:stored_chunks_total", 0) == 0
