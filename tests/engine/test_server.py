"""A real server over HTTP: streams, metrics, cache events for routers, and several engines."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from kvtier.demo.client import complete, connect, metrics
from kvtier.demo.server import MODEL, ServerConfig
from tests.engine.conftest import ServerFactory
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, Reference, nvme
from tests.patience import until

LONG = prompts(4, 1500, seed=61)
ASKED_OF_LLAMA = LONG
CHUNK = 256  # tokens: two blocks


def await_events(subscriber: Any, wanted: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """Take KV events until each of `wanted` was published, by type and medium; return all."""
    missing = set(wanted)
    heard: list[dict[str, Any]] = []

    def take() -> None:
        while subscriber.poll(100):
            _, _, payload = subscriber.recv_multipart()
            for event in msgspec.msgpack.decode(payload)[1]:
                missing.discard((event["type"], event.get("medium")))
                heard.append(event)

    until(lambda: not missing, f"the server publishes {sorted(wanted)}", take)
    return heard


def assert_blocks_are_named(heard: list[dict[str, Any]], prompt: list[int]) -> None:
    """A router that matches prefixes finds every block of a prompt's chunks on the CPU, from the first one on."""
    stored = [event for event in heard if event["type"] == "BlockStored"]
    device = {h for event in stored if event["medium"] == "GPU" for h in event["block_hashes"]}
    parent = None
    for start in range(0, len(prompt) - CHUNK, CHUNK):
        tokens = prompt[start : start + CHUNK]
        chunk = next(e for e in stored if e["medium"] == "CPU" and e["token_ids"] == tokens)
        assert (chunk["parent_block_hash"], chunk["block_size"]) == (parent, 128)
        assert len(chunk["block_hashes"]) == CHUNK // 128
        assert device.issuperset(chunk["block_hashes"])
        parent = chunk["block_hashes"][-1]


def total(said: str, name: str, **labels: str) -> float:
    """Add up the samples of a metric that have these labels."""
    families = text_string_to_metric_families(said)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(each.value for each in samples if labels.items() <= each.labels.items())


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
            options=("--kv-events-config", json.dumps(publish), "--trust-request-chat-template"),
        )
    )
    for _ in range(2):
        for prompt in LONG:
            answer = complete(server.port, prompt, TOKENS)
            assert answer.tokens == reference.of([prompt])[0]
    heard = await_events(
        subscriber, {("BlockStored", "CPU"), ("BlockRemoved", "CPU"), ("BlockStored", "STORAGE")}
    )
    assert_blocks_are_named(heard, LONG[0])
    context.destroy(linger=0)
    said = metrics(server.port)
    for name in (
        'kvtier:tier_used_bytes{engine="0",model_name="demo",tier="nvme"}',
        'kvtier:tier_write_bytes_total{engine="0",model_name="demo",tier="nvme"}',
        'kvtier:tier_hit_chunks_total{engine="0",model_name="demo",tier="nvme"}',
        "kvtier:lookup_calls_total",
        "kvtier:free_slots",
    ):
        assert name in said
    asked = 2 * sum(map(len, LONG))
    assert total(said, "kvtier:prompt_tokens_total") == asked
    assert total(said, "vllm:prompt_tokens_total") == asked
    computed = total(said, "kvtier:prompt_tokens_total", tier="computed")
    assert total(said, "kvtier:misses_total") == computed < asked
    assert total(said, "kvtier:ttft_seconds_count") == 2 * len(LONG)
    assert total(said, "kvtier:info", chunk_tokens=str(CHUNK), ranks="1") == 1
    line = next(line for line in server.log.read_text().splitlines() if "kvtier: chunks of" in line)
    assert line.endswith(
        f"256 tokens (chunk_tokens), 1 rank(s), 1 on a node; of each rank: dram 10MiB, nvme 1GiB (file at {tmp_path}/nvme)"
    )
    assert_reports(server.port)
    assert server.close(), "it went by itself, with all that it started"


def assert_reports(port: int) -> None:
    """Who asks is told where its prompt's tokens came from, in answers that are no streams; nobody else is."""
    asked = {"model": MODEL, "prompt": LONG[0], "max_tokens": 1, "temperature": 0}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "who?"}], "max_tokens": 1}
    chat["chat_template"] = "{{ messages[0].content }}"
    wish = {"kv_transfer_params": {"kvtier": {"report": True}}}
    with connect(port) as http:
        told = http.post("/v1/completions", json=asked | wish).json()["kv_transfer_params"]
        talked = http.post("/v1/chat/completions", json=chat | wish).json()["kv_transfer_params"]
        plain = http.post("/v1/completions", json=asked).json()
        streamed = http.post("/v1/completions", json=asked | wish | {"stream": True})
    report = told["kvtier"]["report"]
    assert sum(report["tokens"].values()) == len(LONG[0])
    assert report["tokens"]["computed"] < len(LONG[0])
    assert report["why"] == "tail"
    assert set(talked["kvtier"]["report"]) == {"tokens", "wait_ms", "why"}
    assert plain.get("kv_transfer_params") is None
    assert "report" not in streamed.text


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
