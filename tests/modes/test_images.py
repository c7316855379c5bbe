"""Images on an engine: KV of a text after one image is never that of the same text after another."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine
from tests.engine.models import prompts
from tests.modes import tiny
from tests.modes.identity import Ask, Mode, Told, check
from tests.modes.test_requests import question

MODE = Mode(options={"limit_mm_per_prompt": {"image": 1}})
UNNAMED = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}
HIT = 512  # of 600 tokens and those of the image before them


def about(*seeds: int) -> Ask:
    """The same text after each of these images."""
    return question("about_images", prompts(1, 600, seed=21)[0], seeds, 10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.make(tmp_path, "blip2")


def test_each_image_has_its_own_kv(engine: EngineFactory, model: Path, tmp_path: Path) -> None:
    """The same image again hits, from the device, DRAM and files, and gets its own answer."""

    def ask(running: Engine) -> Told:
        told = about(1, 2)(running)
        assert told.answers[0] != told.answers[1], "both are looked at"
        return told

    check(engine, replace(MODE, hit=HIT), model, tmp_path / "kv", ask)


@pytest.mark.parametrize("named", [True, False], ids=["by content", "by number"])
def test_after_a_restart_another_image_comes_first(
    engine: EngineFactory, model: Path, tmp_path: Path, named: bool
) -> None:
    """With both of its caches off vLLM names images by number: the first of the next life has the name of this one's."""
    mode = replace(MODE, options={**MODE.options, **({} if named else UNNAMED)})
    one, other = about(1)(engine(mode.alone(model))).answers, about(2)(engine(mode.alone(model)))
    assert one != other.answers
    kept = HIT if named else 0
    lives = [
        [(about(1), Told(one, [0])), (about(1), Told(one, [HIT if named else 0]))],
        [(about(2), Told(other.answers, [0])), (about(1), Told(one, [kept]))],
    ]
    for life in lives:
        running = engine(mode.below(model, tmp_path / "kv"))
        running.call("tests.engine.faults:settle")
        for ask, right in life:
            assert ask(running) == right
            running.call("tests.engine.inside:idle")
        running.close()
    assert bool(list((tmp_path / "kv").rglob("*.kvt"))) == named
