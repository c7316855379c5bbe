"""A real server over HTTP: streams, metrics, cache events for routers, and a second connector beside ours."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from kvtier.demo.client import complete, metrics
from kvtier.demo.server import ServerConfig, kv_transfer_config
from tests.engine.conftest import EngineFactory, ServerFactory
from tests.engine.harness import EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, Reference, dram, nvme
from tests.patience import until

LONG = prompts(4, 1500, seed=61)
ASKED_OF_LLAMA = LONG


def await_events(subscriber: Any, wanted: set[tuple[str, str]]) -> None:
    """Take KV events until each of `wanted` was published, by type and medium."""
    missing = set(wanted)

    def take() -> None:
        while subscriber.poll(100):
            _, _, payload = subscriber.recv_multipart()
            for event in msgspec.msgpack.decode(payload)[1]:
                missing.discard((event["type"], event.get("medium")))

    until(lambda: not missing, f"the server publishes {sorted(wanted)}", take)


def test_streaming_metrics_and_events(
    serve: ServerFactory, reference: Reference, llama: Path, tmp_path: Path
) -> None:
    import zmq

    endpoint = f"ipc://{tmp_path}/events"
    publish = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": endpoint,
        "topic": "kv",
    }
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.connect(endpoint)
    subscriber.subscribe("kv")
    server = serve(
        ServerConfig(
            model=llama,
            blocks=20,
            max_tokens=2304,
            kvtier=nvme(tmp_path / "nvme", dram_capacity="10MiB"),
            options=("--kv-events-config", json.dumps(publish)),
        )
    )
    for _ in range(2):
        for prompt in LONG:
            answer = complete(server.port, prompt, TOKENS)
            assert answer.tokens == reference.of([prompt])[0]
    await_events(
        subscriber, {("BlockStored", "CPU"), ("BlockRemoved", "CPU"), ("BlockStored", "STORAGE")}
    )
    context.destroy(linger=0)
    said = metrics(server.port)
    for name in (
        'kvtier:tier_used_bytes{engine="0",model_name="demo",tier="nvme"}',
        'kvtier:tier_write_bytes_total{engine="0",model_name="demo",tier="nvme"}',
        'kvtier:tier_hits_total{engine="0",model_name="demo",tier="nvme"}',
        "kvtier:lookups_total",
        "kvtier:free_slots",
    ):
        assert name in said
    line = next(line for line in server.log.read_text().splitlines() if "kvtier: chunks of" in line)
    assert line.endswith(f"tokens; of each rank: dram 10MiB, nvme 1GiB (file at {tmp_path}/nvme)")
    assert server.close(), "it went by itself, with all that it started"


def test_beside_another_connector(
    engine: EngineFactory, reference: Reference, llama: Path, tmp_path: Path
) -> None:
    ours = kv_transfer_config(dram())
    other = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path / "other")},
    }
    both = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": [ours, other]},
    }
    options = {"kv_transfer_config": both, "disable_hybrid_kv_cache_manager": True}
    running = engine(EngineConfig(model=llama, blocks=20, options=options))
    for _ in range(2):
        for prompt in LONG:
            assert running.generate([prompt], TOKENS) == reference.of([prompt])
    assert running.metrics()["kvtier:loads_total"] > 0


def test_data_parallel_engines_keep_to_themselves(
    serve: ServerFactory, reference: Reference, llama: Path, tmp_path: Path
) -> None:
    """Of a dense model vLLM tells each engine that it is the only one, in all but its name."""
    trace = {"record": str(tmp_path / "trace.jsonl")}
    tiers = nvme(tmp_path / "nvme", dram_capacity="64MiB")
    server = serve(
        ServerConfig(
            model=llama,
            blocks=40,
            max_tokens=2304,
            kvtier={**tiers, "trace": trace},
            options=("--data-parallel-size", "2"),
            env={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        )
    )
    with ThreadPoolExecutor(len(LONG)) as pool:
        answers = pool.map(lambda prompt: complete(server.port, prompt, TOKENS), LONG)
        assert [answer.tokens for answer in answers] == reference.of(LONG)
    server.close()
    assert sorted(path.name for path in tmp_path.glob("trace*")) == [
        "trace.dp0.jsonl",
        "trace.dp1.jsonl",
    ]
    for engine in ("dp0", "dp1"):
        (lock,) = (tmp_path / "nvme" / engine).glob("r*.lock")
        assert lock.name == "r0.lock"
        assert list((tmp_path / "nvme" / engine).glob("*/r0/??/*.kvt")), "both were asked"
