"""`--json` means the same in every command: a file, or standard output in place of words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.cli.outputs import with_file
from kvtier.types import OpKind
from tests.io_process.rig import file_tier, rig
from tests.patience import HANG_S

TRACE = Path(__file__).parents[1] / "traces" / "mooncake_800.jsonl.gz"
KV = Path(__file__).parents[1] / "codecs" / "kv-bf16.npy"
COMMANDS = {
    "check": "check {folder}/kv",
    "clear": "clear {folder}/kv --idle-days 9",
    "config check": "config check {folder}/kvtier.yaml --model {folder}",
    "doctor": "doctor",
    "plan": "plan --model {folder} --gpu-memory 80GiB",
    "replay": "replay --trace {trace} --jobs 1 --capacity-tokens 1M",
    "trace stats": "trace stats {trace} --requests 20",
    "bench codec": "bench codec --kv {kv} --chunk-tokens 16 --codec raw",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("json")
    with rig([file_tier(made / "kv")]) as io:
        io.fill(0)
        io.one(OpKind.WRITE, 0)
    (made / "kvtier.yaml").write_text("tiers: [{kind: dram, capacity: 64MiB}]\n")
    (made / "config.json").write_text(
        '{"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128}'
    )
    return made


def run(words: list[str]) -> str:
    return subprocess.run(
        [sys.executable, "-m", "kvtier.cli", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=HANG_S,
    ).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_standard_output_is_json_alone_and_a_file_is_beside_words(name: str, folder: Path) -> None:
    words = COMMANDS[name].format(folder=folder, trace=TRACE, kv=KV).split()
    printed = json.loads(run([*words, "--json"]))
    out = folder / "out.json"
    said = run([*words, "--json", str(out)])
    assert said.strip()
    assert not said.startswith(("{", "["))
    written = json.loads(out.read_text())
    assert type(written) is type(printed)
    if isinstance(printed, dict):
        assert written.keys() == printed.keys()
    out.unlink()


def test_a_bare_option_means_standard_output() -> None:
    assert with_file(["check", "d", "--json"]) == ["check", "d", "--json", "-"]
    assert with_file(["check", "--json", "--fix", "d"]) == ["check", "--json", "-", "--fix", "d"]
    for given in (["check", "d", "--json", "-"], ["check", "d", "--json", "out"], ["check", "d"]):
        assert with_file(given) == given


def test_a_file_that_cannot_be_written_is_refused_before_the_work(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvtier.cli", "check", str(folder), "--json", "/nowhere/out"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 1
    assert done.stderr == "kvtier: /nowhere/out: cannot be written\n"
