"""`kvtier replay` and `kvtier trace`, as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import DEVNULL

import pytest
from typer.testing import CliRunner

from kvtier.cli.main import build
from kvtier.demo.process import end_session, session
from kvtier.errors import ConfigError
from tests.interrupts import heeded
from tests.patience import HANG_S, until

TRACE = Path(__file__).parents[1] / "traces" / "mooncake_800.jsonl.gz"
EXAMPLES = Path(__file__).parents[2] / "examples"
run = CliRunner()


def test_rows_have_what_was_promised(tmp_path: Path) -> None:
    out, page = tmp_path / "o.json", tmp_path / "o.html"
    words = ["replay", "--trace", str(TRACE), "--policy", "lru,arc", "--capacity-tokens", "200k,1M"]
    result = run.invoke(build(), [*words, "--json", str(out), "--html", str(page), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    made = json.loads(out.read_text())
    names = [(row["policy"], row["capacity_tokens"]) for row in made["rows"]]
    assert names == [
        *(("lru", 200_000), ("arc", 200_000), ("lru", 1_000_000), ("arc", 1_000_000)),
        *(("belady", 200_000), ("belady", 1_000_000), ("infinite", None)),
    ]
    for row in made["rows"]:
        assert row.keys() >= {"hit_blocks", "hit_tokens", "saved_prefill_s", "bytes"}
    assert made["assumptions"]["kv_bytes_per_token"] == 128 << 10
    assert "belady" in result.output
    assert page.read_text().startswith("<!doctype html>")


def test_a_configuration_adds_times(tmp_path: Path) -> None:
    yaml = tmp_path / "tiers.yaml"
    yaml.write_text(
        "tiers:\n"
        "  - {kind: dram, capacity: 256MiB}\n"
        f"  - {{kind: file, name: nvme, path: {tmp_path}/kv, capacity: 1GiB}}\n"
        "replay: {kv_bytes_per_token: 1KiB, prefill_rate: 60000}\n"
    )
    out = tmp_path / "o.json"
    words = ["replay", "--trace", str(TRACE), "--config", str(yaml), "--json", str(out)]
    result = run.invoke(build(), [*words, "--jobs", "1"])
    assert result.exit_code == 0, result.output
    row, belady, _ = json.loads(out.read_text())["rows"]
    assert row["capacity_tokens"] == 256 << 10
    assert 0 < row["ttft_s"]["p50"] <= row["ttft_s"]["p99"]
    assert row["hit_blocks"] <= belady["hit_blocks"]
    assert row["occupancy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "lro"], "did you mean 'lru'"),
        (["--capacity-tokens", "lots"], "not a number of tokens"),
        (["--kv-bytes-per-token", "128KB"], "did you mean '128KiB'"),
        (["--format", "moncake"], "did you mean 'mooncake'"),
        (["--chunk-tokens", "700"], "use 1024"),
        (["--capacity-tokens", "9" * 400 + "G"], "--capacity-tokens: inf is more than anything"),
        (["--prefill-rate", "nan"], "--prefill-rate: expected a finite number, got nan"),
        (["--prefill-knee", "0"], "--prefill-knee: "),
        (["--session-rate", "0"], "--session-rate: 0 is not more than 0"),
        (["--json", "/nowhere/rows.json"], "/nowhere/rows.json: cannot be written"),
        (
            ["--config", str(EXAMPLES / "nvme.yaml"), "--prefill-rate", "9"],
            "--prefill-rate: with --config it is replay.prefill_rate in the file",
        ),
    ],
)
def test_mistakes_in_words(words: list[str], message: str) -> None:
    result = run.invoke(build(), ["replay", "--trace", str(TRACE), *words])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_what_is_assumed_can_be_said(tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    words = ["replay", "--trace", str(TRACE), "--jobs", "1", "--json", str(out)]
    more = ["--prefill-knee", "24k", "--prefill-rate", "9e3", "--capacity-tokens", "2000G"]
    result = run.invoke(build(), [*words, *more])
    assert result.exit_code == 0, result.output
    made = json.loads(out.read_text())
    assert (made["assumptions"]["prefill_knee"], made["assumptions"]["prefill_rate"]) == (24e3, 9e3)
    assert made["rows"][0]["hit_blocks"] == made["rows"][-1]["hit_blocks"]  # as an infinite cache


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace that is replayed for seconds."""
    rows = tmp_path_factory.mktemp("long") / "t.jsonl"
    done = run.invoke(build(), ["trace", "synth", "--requests", "60000", "-o", str(rows)])
    assert done.exit_code == 0, done.output
    return rows


@pytest.mark.parametrize("signals", ["TERM", "TERM TERM", "INT INT", "KILL"])
def test_a_replay_that_is_ended_leaves_at_once_with_its_workers(
    long: Path, tmp_path: Path, signals: str
) -> None:
    words = [sys.executable, "-m", "kvtier.cli", "replay", "--trace", str(long), "--jobs", "2"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with heeded():
        replay = subprocess.Popen(
            words, stdout=DEVNULL, stderr=DEVNULL, env=env, start_new_session=True
        )
    try:
        until(lambda: len(at_work(replay.pid)) == 2, "two workers open the trace")
        if signals != "KILL":  # whoever waits for their work to end waits for ever
            for worker in at_work(replay.pid):
                os.kill(worker, signal.SIGSTOP)
        for name in signals.split():
            replay.send_signal(signal.Signals[f"SIG{name}"])
            time.sleep(0.05)
        assert replay.wait(HANG_S) != 0
        until(lambda: not session(replay.pid), "its workers leave")
    finally:
        end_session(replay)
    if signals != "KILL":
        assert not list(tmp_path.iterdir())


def at_work(sid: int) -> list[int]:
    """The workers of a replay that have the trace mapped."""
    return [pid for pid in session(sid) if ".npy" in Path(f"/proc/{pid}/maps").read_text()]


def test_nonsense_is_not_drawn(tmp_path: Path) -> None:
    for option in ("--session-rate", "--think", "--user-tokens", "--output-tokens"):
        words = ["trace", "synth", "-o", str(tmp_path / "t"), option, "nan"]
        result = run.invoke(build(), words)
        assert str(result.exception) == f"{option}: nan is not more than 0"


def test_malformed_rows_are_named(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(
        '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\nbad\n'
    )
    words = ["replay", "--trace", str(file), "--capacity-tokens", "10k", "--jobs", "1"]
    result = run.invoke(build(), words)
    assert "1 malformed rows were skipped" in result.output
    assert "line 2" in result.output


def test_synth_and_stats(tmp_path: Path) -> None:
    file, out = tmp_path / "t.jsonl", tmp_path / "o.json"
    words = ["trace", "synth", "--requests", "300", "--seed", "1", "--source", str(TRACE)]
    result = run.invoke(build(), [*words, "-o", str(file)])
    assert "300 requests" in result.output
    words = ["trace", "stats", str(file), "--source", str(TRACE), "--requests", "300"]
    result = run.invoke(build(), [*words, "--json", str(out), "--capacity-tokens", "1M"])
    assert result.exit_code == 0, result.output
    assert "hit, LRU, 1M tokens" in result.output
    assert [one["requests"] for one in json.loads(out.read_text())] == [300, 300]
