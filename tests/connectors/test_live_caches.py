"""Weights that change under vLLM's real scheduler: KV is a function of them, and no step reads any of other weights."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from torch import nn
from vllm.v1.engine.core import EngineCore

from tests.connectors.no_model import NoModelEngine
from tests.connectors.test_caches import BLOCK, MODELS
from tests.engine.models import prompts
from tests.engine.scenarios import nvme
from tests.modes import tiny


class LiveEngine(NoModelEngine):
    """One whose KV depends on the weights of a network, and whose users speak to EngineCore."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.network = nn.Linear(8, 8, bias=False).requires_grad_(requires_grad=False)
        self.network.weight.fill_(1.0)  # what each start loads
        super().__init__(*args, **kwargs)
        self.core = EngineCore.__new__(EngineCore)
        self.core.scheduler = self.scheduler
        self.core.model_executor = SimpleNamespace(collective_rpc=self._update_weights)

    def get_model(self) -> nn.Module:
        return self.network

    def reset(self, *, running: bool = False, connector: bool = False) -> None:
        if not running:
            self.settle()
        assert self.core.reset_prefix_cache(running, connector)

    def change(self, *, heard: bool) -> None:
        if heard:
            self.core.collective_rpc("update_weights")
        else:
            self._update_weights()

    def _update_weights(self, *_: object) -> list[None]:
        nn.init.normal_(self.network.weight)
        return [None]

    def _begin(self, name: str, tokens: list[int], blocks: Any, computed: int) -> None:
        super()._begin(name, tokens, blocks, computed)
        weights = self.network.weight.numpy().tobytes()
        first = weights + tokens[0].to_bytes(4, "big")
        self._rows[name].names = [hashlib.blake2b(first, digest_size=16).digest()]


FAMILIES = ("full attention", "windows and full attention", "states and windows")


def start(folder: Path, family: str = FAMILIES[0]) -> LiveEngine:
    """Start an engine, which finds what the one before it has written in this folder."""
    model = MODELS[family]
    kvtier = nvme(folder / "kv", dram_capacity="1MiB", write="through") | {"chunk_tokens": BLOCK}
    blocks = 40 * len(model.layers)
    made = LiveEngine(tiny.make(folder, model.family), model.specs, kvtier, blocks=blocks)
    made.settle()
    return made


@pytest.fixture(params=FAMILIES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LiveEngine]:
    with closing(start(tmp_path, str(request.param))) as made:
        yield made


ASKED = prompts(3, 200, seed=5)


@pytest.mark.parametrize("heard", [True, False])
def test_after_a_change_and_a_reset_of_the_device_alone(engine: LiveEngine, heard: bool) -> None:
    for _ in range(3):
        for prompt in ASKED:
            assert engine.ask(prompt) == [0]
        engine.reset()
        assert engine.ask(*ASKED) == [192] * 3
        engine.change(heard=heard)
        engine.reset()
    stats = engine.connector.scheduling.brain.stats()
    assert stats.weight_changes == 2, "the third nobody has asked for yet"


def test_without_the_looks_old_kv_would_be_read(
    engine: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = nn.Linear(8, 8)
    monkeypatch.setattr(engine.workers[0].rank._fingerprint, "_give", lambda: another)
    engine.ask(ASKED[0])
    engine.reset()
    engine.ask(ASKED[0])
    engine.change(heard=True)
    engine.reset()
    with pytest.raises(AssertionError, match=r"other KV|not the state"):
        engine.ask(ASKED[0])


def test_of_two_engines_only_the_one_whose_weights_change_forgets(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("changed", "other")]
    for folder in folders:
        folder.mkdir()
    with closing(start(folders[0])) as changed, closing(start(folders[1])) as other:
        for engine in (changed, other):
            assert engine.ask(ASKED[0]) == [0]
            engine.reset()
        changed.change(heard=False)
        for engine in (changed, other):
            engine.reset()
        assert (changed.ask(ASKED[0]), other.ask(ASKED[0])) == ([0], [192])
        for engine in (changed, other):
            engine.settle()
    found = []
    for folder in folders:
        with closing(start(folder)) as engine:
            found.append(engine.ask(ASKED[0]))
    assert found == [[0], [192]], "each start loads the weights of the files"


@pytest.mark.parametrize("seed", range(3))
def test_changes_and_resets_at_any_time(engine: LiveEngine, seed: int) -> None:
    rng, hot = random.Random(seed), [*ASKED, *(prompt[:100] for prompt in ASKED)]
    changes = 0
    for _ in range(40):
        for prompt in rng.sample(hot, rng.randint(1, 3)):
            engine.queue(prompt, rng.choice((1, 5, 30)))
        for _ in range(rng.randint(0, 8)):
            engine.step()
        match rng.randint(0, 3):
            case 1:
                with suppress(RuntimeError):  # vLLM's own refusal, while a load holds blocks
                    engine.core.reset_prefix_cache(True, False)
                    changes += 1
                    engine.change(heard=rng.random() < 0.5)
                    engine.core.reset_prefix_cache(True, False)
            case 2:
                with suppress(RuntimeError):
                    engine.core.reset_prefix_cache(True, rng.random() < 0.5)
    while engine.scheduler.has_unfinished_requests():
        engine.step()
    engine.settle()
    engine.connector.scheduling.brain.check()
    assert not engine.connector.scheduling.guard.broken
    assert engine.connector.scheduling.brain.stats().weight_changes <= changes
