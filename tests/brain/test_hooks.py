"""Hooks hear what happens and may object, but nothing they do harms."""

import random
from collections import Counter
from pathlib import Path

import pytest

from examples import hooks as example
from kvtier.brain import TieredCache
from kvtier.brain.hooks import Called
from kvtier.config import load
from kvtier.errors import ConfigError
from kvtier.hook import Hook, HookEvent, HookKind, HookSet
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.sim.blocks import serve
from kvtier.types import BlockKey, GroupSpec
from tests.brain.fake_ranks import chain

EVENT = HookEvent(HookKind.EVICT, "dram", BlockKey(b"k"), 16, 1, 1.0)


def cache(slots: int, hooks: HookSet) -> TieredCache:
    made = TieredCache(
        groups=[GroupSpec(0, 16, None, 100)], ranks=1, tier0=LruPolicy, lower=[], hooks=hooks
    )
    made.open(slots, "{}")
    return made


def on(kind: HookKind, hook: Hook, vetoes: int = 16) -> HookSet:
    return HookSet(hooks={kind: [hook]}, budget_s=60.0, max_vetoes=vetoes)


def test_a_hook_hears_each_chunk_that_is_found_and_computed() -> None:
    heard: list[tuple[HookKind, BlockKey, int]] = []

    def hear(event: HookEvent) -> None:
        heard.append((event.kind, event.key, event.end_token))

    kinds = (HookKind.HIT, HookKind.MISS)
    made = cache(8, HookSet(hooks={kind: [hear] for kind in kinds}, budget_s=60.0))
    keys = chain("a", 3)
    serve(made, "r1", keys[:2])
    serve(made, "r2", keys)
    assert [(kind, key) for kind, key, _ in heard] == [
        *((HookKind.MISS, key) for key in keys[:2]),
        *((HookKind.HIT, key) for key in keys[:2]),
        (HookKind.MISS, keys[2]),
    ]
    assert [end for kind, _, end in heard if kind is HookKind.HIT] == [16, 32]


def test_a_veto_saves_a_chunk_and_what_it_continues() -> None:
    precious = chain("a", 2)
    made = cache(4, on(HookKind.EVICT, lambda event: event.key != precious[1]))
    serve(made, "r1", precious)
    for i in range(5):
        serve(made, f"s{i}", chain(f"s{i}", 2))
    assert serve(made, "r2", precious) == 2
    assert made.stats().vetoes == 4
    made.check()


@pytest.mark.parametrize("vetoes", [0, 2, 16])
def test_who_vetoes_everything_does_not_stop_the_cache(vetoes: int) -> None:
    made = cache(4, on(HookKind.EVICT, lambda event: False, vetoes))
    for i in range(20):
        keys = chain(f"s{i}", 3)
        serve(made, f"r{i}", keys)
        assert serve(made, f"again{i}", keys) == 3
        made.check()


def test_an_insertion_is_refused_with_its_tail() -> None:
    keys = chain("a", 3)
    made = cache(8, on(HookKind.INSERT, lambda event: event.key != keys[1]))
    serve(made, "r1", keys)
    assert serve(made, "r2", keys) == 1
    made.check()


def test_a_hook_that_raises_is_called_a_few_times_and_never_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: Counter[HookKind] = Counter()

    def broken(event: HookEvent) -> bool:
        calls[event.kind] += 1
        raise SystemExit("no")

    made = cache(2, on(HookKind.EVICT, broken))
    for i in range(9):
        serve(made, f"r{i}", chain(f"s{i}", 2))
    assert calls[HookKind.EVICT] == 3
    assert made.stats().hook_failures == 3
    assert made.stats().hooks_disabled == 1
    assert "it is called no more" in caplog.text


def test_a_hook_over_its_budget_fails_but_is_heard() -> None:
    times = iter([0.0, 0.5, 1.0, 1.0005, 2.0, 9.0])
    limits = HookSet(budget_s=1e-3, max_failures=2)
    called = Called(lambda event: False, limits, lambda: next(times))
    assert not called.agrees(EVENT)
    assert called.failures == 1
    assert not called.agrees(EVENT)
    assert called.failures == 1
    assert not called.agrees(EVENT)
    assert called.disabled
    assert called.agrees(EVENT)


def test_whatever_hooks_say_the_cache_stays_right() -> None:
    rng = random.Random(3)

    def moody(event: HookEvent) -> bool:
        if rng.random() < 0.02:
            raise ValueError("moody")
        return rng.random() < 0.6

    hooks = HookSet(
        hooks={kind: [moody] for kind in HookKind}, budget_s=60.0, max_failures=10**9, max_vetoes=3
    )
    made = cache(12, hooks)
    for i in range(300):
        serve(made, f"r{i}", chain(rng.choice("abcdef"), rng.randrange(1, 9)))
        made.check()
    assert made.stats().vetoes > 100


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "LOG", tmp_path / "log")
    example.log_to_file(EVENT)
    assert (tmp_path / "log").read_text() == "on_evict dram 6b 16\n"
    assert not example.keep_system_prompts(EVENT)
    assert example.keep_system_prompts(EVENT._replace(end_token=4096))


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"on_evcit": []}, "hooks.on_evcit: unknown key (did you mean 'on_evict'?)"),
        ({"on_hit": ["no.such:thing"]}, "hooks.on_hit[0]: hook 'no.such:thing': there is no"),
        ({"on_hit": ["thing"]}, "hooks.on_hit[0]: hook 'thing': write it as package.module:call"),
        ({"on_hit": ["examples.hooks:LOG"]}, "hooks.on_hit[0]: hook 'examples.hooks:LOG' cannot"),
        ({"on_hit": "examples.hooks:LOG"}, "hooks.on_hit: expected a list, got a string"),
        ({"budget": "soon"}, "hooks.budget: "),
        ({"failures": 0}, "hooks.failures: expected an integer >= 1"),
    ],
)
def test_a_mistake_is_named(hooks: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"tiers": [{"name": "dram", "kind": "dram"}], "hooks": hooks})
    assert str(caught.value).startswith(message)
