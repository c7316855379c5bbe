"""Configurations: YAML, the mapping itself, a model's config.json."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given

from kvtier.cli.geometry import read_geometry
from kvtier.config import digest, from_builtins, load, to_builtins
from kvtier.errors import ConfigError
from tests.fuzz.mutations import JSON, readable, texts, values
from tests.fuzz.scale import examples

EXAMPLES = Path(__file__).parents[2] / "examples"
FULL = """
chunk_tokens: 64
store: prompt
load: always
weights_id: 'v1'
persist_lora: true
prefetch: [arrival, {kind: reuse_distance, late: 0.9}]
io: {threads: 8, idle_write: 256MiB, queue: 4096}
replay: {kv_bytes_per_token: 128KiB, prefill_rate: 10000, prefill_knee: 24k, decode_rate: 50}
trace: {record: /tmp/kvtier-trace.jsonl, queue: 100}
hooks: {on_hit: ['math:sqrt'], budget: 1ms, failures: 3, vetoes: 2}
tiers:
  - {name: dram, kind: dram, capacity: 64MiB, eviction: {kind: attention, weight: 0.5}, numa: [0]}
  - {name: far, kind: memory, capacity: 1MiB, admission: second_use}
  - name: nvme
    kind: file
    path: /tmp/kvtier-fuzz
    capacity: 1MiB
    codec: [planes, {kind: zstd, level: 1}]
    write: through
    deadline: 2s
    depth: 4
    medium: {read: 1GiB, write: 500MiB, latency: 1ms, ratio: 0.7}
    wrappers: [{kind: slow, read_s: 0.1}, faulty]
  - {name: b, kind: file, path: /tmp/kvtier-b, capacity: 1GiB, codec: {budget_ms: 10, among: [lossless, int8]}}
"""
MODEL = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
    "sliding_window": 512,
    "layer_types": ["full_attention", "sliding_attention"],
    "text_config": {"head_dim": 64, "kv_lora_rank": None},
}
YAMLS = [FULL, *(path.read_text() for path in sorted(EXAMPLES.glob("*.yaml")))]


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Let a ConfigError pass that is one short line."""
    try:
        yield
    except ConfigError as exc:
        readable(exc)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def test_the_source_is_right() -> None:
    assert len(load(yaml.safe_load(FULL)).tiers) == 4


@given(texts(YAMLS))
@examples(120)
def test_yaml(folder: Path, text: str) -> None:
    file = folder / "kvtier.yaml"
    file.write_text(text, errors="surrogatepass")
    with one_line():
        config = load(file)
        assert digest(from_builtins(to_builtins(config))) == digest(config)


@given(values(yaml.safe_load(FULL)))
@examples(120)
def test_a_mapping(raw: object) -> None:
    with one_line():
        config = load(raw)  # type: ignore[arg-type] # whatever it is
        assert digest(from_builtins(to_builtins(config))) == digest(config)


@given(texts([json.dumps(MODEL)]))
@examples(60)
def test_a_model_s_config_as_text(folder: Path, text: str) -> None:
    file = folder / "config.json"
    file.write_text(text, errors="surrogatepass")
    with one_line():
        read_geometry(file, ranks=2)


@given(values(MODEL) | JSON)
@examples(60)
def test_a_model_s_config(folder: Path, raw: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(raw))
    with one_line():
        read_geometry(folder, ranks=2, dtype="fp8")
