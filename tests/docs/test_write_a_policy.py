"""docs/write-a-policy.md, word for word: the policy, its contract, the replay, the configuration."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kvtier.assembly import assemble
from kvtier.config import load
from kvtier.facts import RequestHints
from kvtier.sim.blocks import serve
from kvtier.types import GroupSpec
from tests.docs.pages import blocks
from tests.fake_ranks import Clock, chain
from tests.patience import HANG_S

ROOT = Path(__file__).parents[2]
PAGE = "write-a-policy.md"
POLICY, CONTRACT = blocks(PAGE, "python")
(COMMAND,) = blocks(PAGE, "sh")
(CONFIG,) = blocks(PAGE, "yaml")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = tmp_path / "priority_policy.py"
    file.write_text(POLICY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    sys.modules.pop("priority_policy", None)


def test_it_has_under_40_lines() -> None:
    assert len([line for line in POLICY.splitlines() if line.strip()]) < 40


def test_it_keeps_the_contract(module: Path) -> None:
    names: dict[str, type] = {}
    exec(CONTRACT, names)
    suite = names["TestPriority"]
    tests = [name for name in dir(suite) if name.startswith("test_")]
    assert len(tests) > 10
    for name in tests:
        getattr(suite(), name)()


def test_the_replayer_uses_it(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(module.parent)
    rows = [
        {
            "timestamp": 1000 * i,
            "input_length": 512 * 40,
            "output_length": 8,
            "hash_ids": [1000 * (i % 7) + j for j in range(40)],
        }
        for i in range(60)
    ]
    Path("trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = shlex.split(COMMAND)
    assert words[:2] == ["PYTHONPATH=.", "kvtier"]
    command = [sys.executable, "-m", "kvtier.cli", *words[2:], "--json", "out.json", "--jobs", "1"]
    path = os.pathsep.join([str(ROOT), str(module.parent)])
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=env)
    assert done.returncode == 0, done.stderr
    made = json.loads(Path("out.json").read_text())["rows"]
    hits = {row["policy"]: row["hit_blocks"] for row in made}
    assert hits["priority_policy:PriorityPolicy"] == pytest.approx(hits["lru"], abs=0.05)


def test_the_configuration_uses_it_and_priority_counts(module: Path) -> None:
    clock = Clock()
    config = load(yaml.safe_load(CONFIG))
    group = GroupSpec(0, 16, None, 1 << 20)
    cache = assemble(config, [group], ranks=1, local_ranks=1, clock=clock)
    policy = importlib.import_module("priority_policy").PriorityPolicy
    assert isinstance(cache._ledger.policies[0], policy)
    cache.open(6, "{}")
    dear, cheap, new = chain("dear", 3), chain("cheap", 3), chain("new", 3)
    cache.arrive("r", [dear], hints=RequestHints(priority=1))
    cache.finish(cache.plan_store("r", dear).plan_id)
    cache.depart("r")
    clock.now += 30
    serve(cache, "s", cheap)
    clock.now += 10
    serve(cache, "t", new)
    assert serve(cache, "u", dear) == 3
    assert serve(cache, "v", cheap) == 0
    clock.now += 120
    for name in ("w", "x"):
        serve(cache, name, chain(name, 3))
    assert serve(cache, "y", dear) == 0, "its priority is not for ever"
