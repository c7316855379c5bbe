"""Two engines over one Redis: the second finds what the first computed; whatever happens to the store, answers are right."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, Reference
from tests.patience import until
from tests.redis_server import RedisServer, redis_server

LONG = prompts(8, 1100, seed=301)  # four whole chunks and a rest
ASKED_OF_LLAMA = LONG
CHUNK, CHUNKS = 256, 4
TIMEOUT_S = 0.5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(
        tmp_path_factory.mktemp("redis"), "--maxmemory-policy", "allkeys-lru"
    ) as made:
        yield made


def config(store: RedisServer, disk: Path | None = None) -> dict[str, Any]:
    own: list[dict[str, Any]] = [{"name": "dram", "kind": "dram", "capacity": "64MiB"}]
    if disk:
        own += [
            {
                "name": "nvme",
                "kind": "file",
                "path": str(disk),
                "capacity": "1GiB",
                "write": "through",
            }
        ]
    shared = {
        "name": "kv",
        "kind": "redis",
        "url": store.url,
        "write": "through",
        "timeout_s": TIMEOUT_S,
    }
    return {
        "load": "always",
        "chunk_tokens": CHUNK,
        "weights_id": "fleet",
        "tiers": [*own, shared],
    }


@pytest.fixture(scope="module")
def fleet(
    store: RedisServer, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Engine]]:
    """Two engines at once: the second started anew, with a configuration, and a longest prompt, of its own."""
    folder = tmp_path_factory.mktemp("fleet")
    made = [Engine(EngineConfig(model=llama, kvtier=config(store), blocks=24), folder / "one.log")]
    try:
        second = EngineConfig(
            model=llama,
            kvtier=config(store, folder / "kv"),
            blocks=20,
            fresh=True,
            options={"max_model_len": 2048},
        )
        made.append(Engine(second, folder / "two.log"))
        yield made
    finally:
        for engine in made:
            engine.kill()


def known(store: RedisServer, engine: Engine, prompt: list[int], reference: Reference) -> None:
    """Let an engine compute a prompt, and wait until the store has it."""
    before = len(store.records())
    assert engine.generate([prompt], TOKENS) == reference.of([prompt])
    until(lambda: len(store.records()) >= before + CHUNKS, "its chunks are in the store")


def total(engine: Engine, name: str) -> float:
    return sum(n for key, n in engine.metrics().items() if key.startswith(name))


def test_the_second_engine_finds_what_the_first_computed(
    fleet: list[Engine], store: RedisServer, reference: Reference
) -> None:
    first, second = fleet
    known(store, first, LONG[0], reference)
    (answer,) = second.answers([LONG[0]], TOKENS)
    assert answer.tokens == reference.of([LONG[0]])[0]
    assert answer.cached == CHUNKS * CHUNK
    assert total(second, "kvtier:tier_asks_total") >= 1


def test_and_the_other_way_round(
    fleet: list[Engine], store: RedisServer, reference: Reference
) -> None:
    first, second = fleet
    known(store, second, LONG[1], reference)
    (answer,) = first.answers([LONG[1]], TOKENS)
    assert answer.tokens == reference.of([LONG[1]])[0]
    assert answer.cached == CHUNKS * CHUNK


@pytest.mark.parametrize("at", [100, 5000])
def test_a_record_that_is_damaged_is_a_miss_and_goes(
    fleet: list[Engine], store: RedisServer, reference: Reference, at: int
) -> None:
    first, second = fleet
    prompt = LONG[2 if at == 100 else 3]
    before = set(store.records())
    known(store, first, prompt, reference)
    for key in set(store.records()) - before:
        store.call(b"SETRANGE", key, b"%d" % at, b"\xff\xff\xff")
    (answer,) = second.answers([prompt], TOKENS)
    assert answer.tokens == reference.of([prompt])[0]
    assert answer.cached == 0


def test_a_store_that_was_emptied_is_a_miss(
    fleet: list[Engine], store: RedisServer, reference: Reference
) -> None:
    first, second = fleet
    known(store, first, LONG[4], reference)
    store.call(b"FLUSHALL")
    (answer,) = second.answers([LONG[4]], TOKENS)
    assert (answer.tokens, answer.cached) == (reference.of([LONG[4]])[0], 0)


@pytest.mark.parametrize("harm", ["stop", "kill"])
def test_a_store_that_is_gone_costs_little_and_this_machines_tiers_go_on(
    fleet: list[Engine], store: RedisServer, reference: Reference, harm: str
) -> None:
    _, second = fleet
    prompt = LONG[5 if harm == "stop" else 6]
    getattr(store, harm)()
    try:
        started = time.monotonic()
        assert second.generate([LONG[7]], TOKENS) == reference.of([LONG[7]])
        alone = time.monotonic() - started
        started = time.monotonic()
        (answer,) = second.answers([prompt], TOKENS)
        assert answer.tokens == reference.of([prompt])[0]
        assert time.monotonic() - started < alone + 2.0
        (answer,) = second.answers([LONG[7]], TOKENS)
        assert answer.tokens == reference.of([LONG[7]])[0]
        assert answer.cached >= CHUNKS * CHUNK
    finally:
        store.go_on() if harm == "stop" else store.start()
    until(
        lambda: total(second, "kvtier:tier_resting") == 0,
        "the store serves again",
        lambda: second.generate([LONG[7][:300]], 1),  # an idle engine tries nothing
    )
