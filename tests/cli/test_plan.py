"""`kvtier plan`: figures worked out by hand, and the smallest cache for a target."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kvtier.cli.geometry import read_geometry
from kvtier.cli.main import build
from kvtier.cli.plan import Kvs, kvs_of, sizing
from kvtier.cli.replay import policies
from kvtier.errors import ConfigError
from kvtier.sim.plan import Kv, break_even, fit, smallest
from kvtier.sim.setting import Prefill
from tests.sim.rows import trace

TRACE = Path(__file__).parents[1] / "traces" / "mooncake_800.jsonl.gz"
GQA: dict[str, object] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}
MLA: dict[str, object] = {
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}
SLIDING: dict[str, object] = {
    **GQA,
    "num_hidden_layers": 48,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
}
run = CliRunner()


def kv(tmp_path: Path, raw: dict[str, object], *, tp: int = 1, dtype: str = "auto") -> Kv:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(raw))
    return kvs_of(read_geometry(file, ranks=tp, dtype=dtype), tp).memory


def test_bytes_per_token(tmp_path: Path) -> None:
    assert kv(tmp_path, GQA) == Kv(nbytes_per_token=2 * 8 * 128 * 32 * 2)
    assert kv(tmp_path, GQA, tp=2) == kv(tmp_path, GQA)
    assert kv(tmp_path, GQA, dtype="fp8").nbytes_per_token == 64 << 10
    assert kv(tmp_path, MLA).nbytes_per_token == 61 * 576 * 2
    assert kv(tmp_path, MLA, tp=8).nbytes_per_token == 8 * 61 * 576 * 2


def test_latent_kv_of_all_ranks_is_on_nvme_once(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MLA))
    size = f"{8 * 61 * 576 * 2 * 1000}B"
    words = ["plan", "--model", str(file), "--gpu-memory", "800GiB", "--tp", "8"]
    words += ["--context", "1000", "--gpu-utilisation", "1", "--dram", size, "--nvme", size]
    result = run.invoke(build(), words)
    assert result.exit_code == 0, result.output
    assert "on NVMe 68.62KiB, one record for all" in " ".join(result.output.split())
    held = {row[0]: row[-2] for line in result.output.splitlines() if len(row := line.split()) > 4}
    assert (held["DRAM"], held["NVMe"]) == ("1.0", "8.0")


def test_of_latent_kv_the_trace_needs_less_nvme(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MLA))
    kvs = kvs_of(read_geometry(file, ranks=8), 8)
    asked = trace([list(range(1, 201)), list(range(1, 201))])
    once, copied = (
        sizing(asked, policies("lru")[0], each, Prefill(knee=1e18), (0.1, 0.8))
        for each in (kvs, Kvs(kvs.memory, kvs.memory))
    )
    assert once
    assert copied
    assert copied.nvme_bytes == pytest.approx(8 * once.nvme_bytes, rel=0.01)


def test_windows_are_kept_once(tmp_path: Path) -> None:
    made = kv(tmp_path, SLIDING)
    layer = 2 * 8 * 128 * 2
    assert made == Kv(
        nbytes_per_token=8 * layer, window_nbytes=40 * layer * 1024, window_tokens=1024
    )
    assert made.nbytes(512) == 512 * 48 * layer
    assert made.nbytes(10_000) == 10_000 * 8 * layer + 40 * layer * 1024


def test_what_fits() -> None:
    place = fit("DRAM", 1000, Kv(nbytes_per_token=2), 100)
    assert (place.tokens, place.conversations) == (500, 5.0)


def test_the_bandwidth_that_is_worth_it() -> None:
    """100 tokens in 1 s, of 2 bytes each."""
    assert break_even(Kv(nbytes_per_token=2), 100, Prefill(rate=100, knee=1e18)) == 200


def test_the_smallest_cache_is_found() -> None:
    one = trace([list(range(1, 201)), list(range(1, 201))])
    prefill = Prefill(knee=1e18)
    found = smallest(one, 0.5, lambda blocks: min(blocks, 200) / 400, prefill)
    assert found is not None
    assert found.tokens == pytest.approx(100 * 16, abs=4 * 16)
    assert found.share >= 0.25
    assert smallest(one, 0.5, lambda blocks: 0.0, prefill) is None
    assert smallest(trace([[1], [2]]), 0.5, lambda blocks: 0.0, prefill) is None
    assert np.isclose(found.best, 0.5)


def test_the_command_says_units(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GQA))
    words = ["plan", "--model", str(file), "--gpu-memory", "80GiB", "--weights", "16GiB"]
    more = ["--context", "128k", "--dram", "512GiB", "--trace", str(TRACE)]
    result = run.invoke(build(), [*words, *more])
    assert result.exit_code == 0, result.output
    for what in ("KV per token: 128KiB", "56GiB", "512GiB", "/s", "DRAM + NVMe for 80%"):
        assert what in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu-memory", "8GB"], "did you mean '8GiB'"),
        (["--gpu-memory", "8GiB", "--weights", "16GiB"], "do not fit"),
        (["--gpu-memory", "8GiB", "--context", "long"], "not a number of tokens"),
        (["--gpu-memory", "8GiB", "--prefill-rate", "0"], "--prefill-rate: expected a number > 0"),
        (["--gpu-memory", "8GiB", "--prefill-knee", "0"], "--prefill-knee: "),
        (["--gpu-memory", "8GiB", "--gpu-utilisation", "nan"], "--gpu-utilisation: nan is not a"),
    ],
)
def test_mistakes_in_words(words: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GQA))
    result = run.invoke(build(), ["plan", "--model", str(file), *words])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
