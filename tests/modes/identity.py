"""The check that every mode passes: answers do not depend on where KV comes from, and they do depend on all of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.engine.conftest import EngineFactory
from tests.engine.harness import Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import nvme

SHARP = {"load_format": "dummy", "worker_extension_cls": "tests.modes.worker.Extension"}


class Told(NamedTuple):
    """What an engine answers."""

    answers: list[Any]  # tokens, or vectors
    cached: list[int]  # tokens of each prompt that were not computed


Ask = Callable[[Engine], Told]


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to run an engine, and what is asked of it."""

    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    kvtier: Mapping[str, Any] = field(default_factory=lambda: {"chunk_tokens": 128})
    blocks: int = 60
    length: int = 600
    tokens: int = 10
    hit: int | None = (
        None  # tokens of a prompt that come from kvtier; None: as many as from vLLM's own cache
    )
    tp: int = 1
    lane: str | None = None
    as_one: bool = True  # vLLM answers alike to prompts at once and one by one
    idle_groups: Sequence[int] = ()  # groups whose KV changes no answer

    def alone(self, model: Path) -> EngineConfig:
        """vLLM without kvtier, and with room for all that is asked."""
        return replace(self._config(model, None), blocks=400)

    def below(self, model: Path, folder: Path) -> EngineConfig:
        """The same with DRAM and a file tier."""
        return self._config(
            model, nvme(folder, dram_capacity="128MiB", write="through") | dict(self.kvtier)
        )

    def _config(self, model: Path, kvtier: Mapping[str, Any] | None) -> EngineConfig:
        return EngineConfig(
            model=model,
            kvtier=kvtier,
            blocks=self.blocks,
            tp=self.tp,
            lane=self.lane,
            in_process=True,
            options=SHARP | dict(self.options),
            env=self.env,
        )

    def one_by_one(self, running: Engine) -> Told:
        """Ask one prompt after the other."""
        return told(running, self.asked(), self.tokens)

    def at_once(self, running: Engine) -> Told:
        """Ask all prompts in one batch."""
        answers = running.answers(self.asked(), self.tokens)
        return Told([answer.tokens for answer in answers], [answer.cached for answer in answers])

    def asked(self) -> list[list[int]]:
        """The prompts."""
        return prompts(3, self.length, seed=7)


def told(running: Engine, asked: list[list[int]], tokens: int) -> Told:
    """Ask one prompt after the other."""
    answers = [running.answers([prompt], tokens)[0] for prompt in asked]
    return Told([answer.tokens for answer in answers], [answer.cached for answer in answers])


def check(
    engine: EngineFactory, mode: Mode, model: Path, folder: Path, ask: Ask | None = None
) -> None:
    """Ask vLLM alone, then kvtier: with nothing stored, from DRAM, from DRAM with wrong KV, from files.

    Loaded KV is compared with vLLM's own cached KV: in bfloat16 what is computed at once differs from both.
    """
    ask = ask or mode.one_by_one
    alone = engine(mode.alone(model))
    cold, own = ask(alone), ask(alone)
    right = own if mode.hit is None else own._replace(cached=[mode.hit] * len(own.cached))
    assert any(right.cached)
    running = engine(mode.below(model, folder))
    running.call("tests.engine.faults:settle")
    assert_alike(ask(running), cold)
    rest(running)
    assert_alike(ask(running), right)
    if mode.as_one and ask == mode.one_by_one:
        rest(running)
        assert_alike(mode.at_once(running), right)
    assert_all_kv_counts(running, mode, ask, right)
    cool(running)
    assert_alike(ask(running), right)
    rest(running)


def assert_all_kv_counts(running: Engine, mode: Mode, ask: Ask, right: Told) -> None:
    """Assert that wrong KV in any group changes an answer: so the right answers came of loaded KV."""
    for group, layers in enumerate(running.call("tests.modes.inside:groups")):
        rest(running)
        slots = running.call("tests.modes.inside:slots", group)
        assert len(slots) > 1, layers
        running.call("tests.modes.inside:shift", slots)
        wrong = ask(running)
        assert wrong.cached == right.cached, (layers, wrong.cached)
        assert alike(wrong.answers, right.answers) == (group in mode.idle_groups), layers
        rest(running)
        running.call("tests.modes.inside:shift", slots[::-1])


def assert_alike(said: Told, right: Told) -> None:
    """Assert that two engines answer the same, and that as much was not computed."""
    assert said.cached == right.cached
    assert alike(said.answers, right.answers), (said.answers, right.answers)


def alike(one: Any, other: Any) -> bool:
    """Whether two answers are the same: tokens exactly, vectors nearly."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(math.isclose(one, other, abs_tol=2e-3))


def rest(running: Engine) -> None:
    """Let everything be stored, and leave nothing on the device."""
    running.call("tests.engine.inside:idle")
    assert running.reset()


def cool(running: Engine) -> None:
    """Leave everything in files only, and let it be read, however slow this machine is."""
    rest(running)
    running.call("tests.engine.faults:cool")
    rest(running)
    assert running.call("tests.engine.faults:tier0") == 0
    running.call("tests.engine.faults:trust")
