"""Where one prompt's tokens came from, told in its own answer: on real engines, beside another kvtier, and whoever ends early."""

from pathlib import Path
from typing import Any

import pytest

from kvtier.demo.server import kv_transfer_config
from tests.engine.conftest import EngineFactory
from tests.engine.harness import Answer, Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, dram, nvme

FIRST, SECOND, THIRD = prompts(3, 1500, seed=91)
SHORT = FIRST[:100]
ASK: dict[str, Any] = {"extra_args": {"kv_transfer_params": {"kvtier": {"report": True}}}}
WHOLE = 5 * 256  # tokens of chunks


@pytest.fixture
def running(engine: EngineFactory, llama: Path, tmp_path: Path) -> Engine:
    kvtier = nvme(tmp_path / "nvme", dram_capacity="10MiB", write="through")
    return engine(EngineConfig(model=llama, kvtier=kvtier, blocks=20, in_process=True))


def report(answer: Answer, key: str = "kvtier") -> dict[str, Any]:
    assert answer.told is not None
    found: dict[str, Any] = answer.told[key]["report"]
    return found


def ask(engine: Engine, prompt: list[int]) -> dict[str, Any]:
    """Ask with an empty device."""
    assert engine.reset()
    (answer,) = engine.answers([prompt], TOKENS, **ASK)
    assert engine.call("tests.engine.faults:settle") == []
    found = report(answer)
    assert sum(found["tokens"].values()) == len(prompt)
    assert sum(found["tokens"].values()) - found["tokens"]["computed"] == answer.cached
    return found


def test_it_names_the_tier_the_wait_and_the_reason(running: Engine) -> None:
    running.generate([SHORT], 1)  # its tiers are open
    assert running.call("tests.engine.faults:settle") == []
    new = ask(running, FIRST)
    assert new == {
        "tokens": {"computed": 1500, "hbm": 0, "dram": 0, "nvme": 0},
        "wait_ms": 0.0,
        "why": "absent",
    }
    again = ask(running, FIRST)
    assert again["tokens"] == {"computed": 1500 - WHOLE, "hbm": 0, "dram": WHOLE, "nvme": 0}
    assert (again["wait_ms"], again["why"]) == (0.0, "tail")
    for prompt in (SECOND, THIRD):
        ask(running, prompt)
    below = ask(running, FIRST)
    assert below["tokens"]["nvme"] > 0
    assert below["wait_ms"] > 0
    (silent,) = running.answers([FIRST], TOKENS)
    assert silent.told is None
    (cached,) = running.answers([FIRST], TOKENS, **ASK)
    assert report(cached)["tokens"]["hbm"] > 0
    refused = {"kvtier": {"report": True, "load": False}}
    assert running.reset()
    (no,) = running.answers([FIRST], TOKENS, extra_args={"kv_transfer_params": refused})
    assert report(no)["why"] == "hint"
    assert running.call("tests.engine.inside:reports_kept") == 0


def test_whoever_is_aborted_or_preempted_leaves_nothing(running: Engine) -> None:
    ask(running, FIRST)
    assert running.reset()
    running.add("before its first step", FIRST, TOKENS, **ASK)
    running.abort("before its first step")
    running.add("in the middle", FIRST, TOKENS, **ASK)
    running.step()
    running.abort("in the middle")
    running.add("after its first token", SHORT, 40, **ASK)
    while not running.step():
        pass
    running.abort("after its first token")
    running.add("preempted", FIRST, 40, **ASK)
    while not running.step():
        pass
    assert running.reset(running=True)
    answer = running.drain()["preempted"]
    found = report(answer)
    assert sum(found["tokens"].values()) == len(FIRST), "it is of the first admission"
    assert running.call("tests.engine.inside:idle")["requests"] == 0
    assert running.call("tests.engine.inside:reports_kept") == 0


def test_each_of_two_tells_its_own(engine: EngineFactory, llama: Path, tmp_path: Path) -> None:
    connectors = [kv_transfer_config(dram("10MiB")), kv_transfer_config(nvme(tmp_path / "nvme"))]
    several = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": connectors},
    }
    both = engine(EngineConfig(model=llama, blocks=20, options={"kv_transfer_config": several}))
    for prompt in (FIRST, SECOND, FIRST):
        assert both.reset()
        (answer,) = both.answers([prompt], TOKENS, **ASK)
        assert answer.told is not None
        assert set(answer.told) == {"kvtier", "kvtier_1"}
        one, other = report(answer), report(answer, "kvtier_1")
        assert sum(one["tokens"].values()) == sum(other["tokens"].values()) == len(prompt)
    hits = [sum(each["tokens"].get(tier, 0) for tier in ("dram", "nvme")) for each in (one, other)]
    assert sum(hits) == answer.cached > 0
    assert min(hits) == 0, "one of them loads"
