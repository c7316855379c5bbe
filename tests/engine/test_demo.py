"""`kvtier demo --quick`, whole: four engines, the same answers from each."""

import json
import os
import subprocess
import sys
from pathlib import Path

from kvtier.demo.process import end_session
from tests.patience import HANG_S


def test_every_pass_answers_the_same_and_finds_its_tokens_where_it_should(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kvtier.cli", "demo", "--quick", "--json", "figures.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        start_new_session=True,
    ) as process:
        try:
            said = process.communicate(timeout=5 * HANG_S)[0].decode()
        finally:
            end_session(process)
    assert process.returncode == 0, said
    passes = {
        each["name"]: each for each in json.loads((tmp_path / "figures.json").read_text())["passes"]
    }
    assert list(passes) == ["vllm", "dram", "nvme", "restart"]
    assert all(each["identical"] for each in passes.values())
    tokens = {name: each["tokens"] for name, each in passes.items()}
    assert tokens["vllm"]["dram"] == tokens["vllm"]["nvme"] == 0
    assert tokens["dram"]["dram"] > 0 == tokens["dram"]["nvme"]
    assert tokens["nvme"]["nvme"] > 0
    assert tokens["restart"]["nvme"] > tokens["restart"]["computed"]
    assert tokens["dram"]["computed"] < tokens["vllm"]["computed"]
    assert len({sum(tokens[name].values()) for name in ("vllm", "dram", "nvme")}) == 1
    assert "<figure" in (tmp_path / "demo-report.html").read_text()
    left = sorted(path.name for path in (tmp_path / "cache/kvtier/demo").iterdir())
    assert left == ["llama-6x512-v1"]
