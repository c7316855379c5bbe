"""Policies by name, by path and by hook, under the real engine: answers stay vLLM's own."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import blocks
from tests.engine.conftest import EngineFactory
from tests.engine.harness import ROOT, Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, Reference, nvme

PROMPTS = prompts(6, 900, seed=77)
ASKED_OF_LLAMA = PROMPTS
HINTS: dict[str, Any] = {
    "kvtier": {"session_id": "s", "priority": 2, "ttl_s": 60, "session_end": True}
}
HOOKS = """
from pathlib import Path

LOG = Path(__file__).with_name("log")


def hear(event):
    with LOG.open("a") as log:
        log.write(f"{event.kind}\\n")
    return True


def fail(event):
    raise RuntimeError("a user's mistake")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("policies")
    (made / "priority_policy.py").write_text(blocks("write-a-policy.md", "python")[0])
    (made / "my_hooks.py").write_text(HOOKS)
    return made


@pytest.fixture(scope="module")
def kvtier(reference: Reference, engine: EngineFactory, llama: Path, folder: Path) -> Engine:
    given = yaml.safe_load(blocks("write-a-policy.md", "yaml")[0])
    given["hooks"] = {
        "on_insert": ["my_hooks:hear"],
        "on_evict": ["my_hooks:hear", "my_hooks:fail"],
        "budget": "1s",
    }
    file = folder / "kvtier.yaml"
    file.write_text(yaml.safe_dump(given))
    path = os.pathsep.join([str(ROOT), str(folder)])
    config = EngineConfig(
        model=llama,
        blocks=24,
        kvtier=str(file),
        in_process=True,
        env={"PYTHONPATH": path, "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},
    )
    return engine(config)


def test_the_policy_of_the_page_serves_with_hooks_and_hints(
    kvtier: Engine, reference: Reference, folder: Path
) -> None:
    for _ in range(3):
        for prompt in PROMPTS:
            assert kvtier.generate([prompt], TOKENS) == reference.of([prompt])
    answers = kvtier.call("tests.engine.inside:hinted", PROMPTS[:2], HINTS, TOKENS)
    assert [tokens for tokens, _ in answers] == reference.of(PROMPTS[:2])
    found = kvtier.call("tests.engine.inside:policies")
    assert found["policy"] == "PriorityPolicy"
    assert found["evictions"] > 0
    assert found["hooks_disabled"] == 1
    assert found["hook_failures"] == 3
    assert set((folder / "log").read_text().split()) == {"on_insert", "on_evict"}


def test_hints_reach_the_policies(kvtier: Engine) -> None:
    kvtier.call("tests.engine.inside:listen")
    kvtier.call("tests.engine.inside:hinted", PROMPTS[:1], HINTS, TOKENS)
    assert kvtier.call("tests.engine.inside:heard") == [["s", 2, 60, True]]


def test_attention_gets_scores_on_this_backend(
    engine: EngineFactory, llama: Path, reference: Reference, tmp_path: Path
) -> None:
    config = nvme(tmp_path)
    tiers = config["tiers"]
    assert isinstance(tiers, list)
    tiers[0]["eviction"] = {"kind": "attention", "weight": 1.0}
    kvtier = engine(EngineConfig(model=llama, blocks=24, kvtier=config, in_process=True))
    for _ in range(2):
        for prompt in PROMPTS:
            assert kvtier.generate([prompt], TOKENS) == reference.of([prompt])
    scores = kvtier.call("tests.engine.inside:scores", 6)
    assert len(set(scores)) > 5
    assert all(0 < score < 1 for score in scores)
