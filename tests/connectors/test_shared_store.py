"""Two engines, with vLLM's own scheduler and real I/O processes, over one real Redis: every byte that is read is compared."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from kvtier.brain import Why
from kvtier.types import OpStatus
from tests.connectors.no_model import NoModelEngine
from tests.connectors.test_caches import FULL, WINDOW
from tests.engine.models import prompts
from tests.modes import tiny
from tests.redis_server import RedisServer, redis_server

ASKED = prompts(6, 200, seed=61)
CACHED, CHUNKS = 192, 6
TIMEOUT_S = 0.4


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as made:
        yield made


class Fleet:
    """Engines over one store; each has DRAM of its own, and a disk if it is to."""

    def __init__(self, store: RedisServer, folder: Path, stack: ExitStack) -> None:
        self._store = store
        self._folder = folder
        self._stack = stack
        self._count = 0

    def engine(
        self,
        *,
        disk: bool = False,
        specs: dict[str, Any] | None = None,
        model: str = "qwen3",
        **more: Any,
    ) -> NoModelEngine:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        tiers: list[dict[str, Any]] = [{"kind": "dram", "capacity": "4MiB"}]
        if disk:
            path = str(folder / "kv")
            tiers += [
                {
                    "name": "nvme",
                    "kind": "file",
                    "path": path,
                    "capacity": "1GiB",
                    "write": "through",
                }
            ]
        tiers += [
            {
                "name": "kv",
                "kind": "redis",
                "url": self._store.url,
                "write": "through",
                "timeout_s": TIMEOUT_S,
            }
        ]
        kvtier = {"load": "always", "chunk_tokens": 32, "tiers": tiers}
        made = NoModelEngine(
            tiny.make(folder, model),
            specs or {f"layers.{i}": FULL for i in range(3)},
            kvtier,
            blocks=128,
            **more,
        )
        self._stack.callback(made.close)
        made.settle()
        return made


@pytest.fixture
def fleet(store: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(store, tmp_path, stack)


def brain(engine: NoModelEngine) -> Any:
    made = engine.connector.scheduling.brain
    made.check()
    return made


def test_what_one_computed_the_other_finds_byte_for_byte(fleet: Fleet, store: RedisServer) -> None:
    one, other = fleet.engine(), fleet.engine()
    assert one.ask(*ASKED[:2]) == [0, 0]
    one.settle()
    assert len(store.records()) == 2 * CHUNKS
    assert other.ask(*ASKED[:2]) == [CACHED] * 2
    assert brain(other).stats().tiers[1].hits == 2 * CHUNKS
    assert other.ask(ASKED[2]) == [0]
    other.settle()
    assert one.ask(ASKED[2]) == [CACHED]
    one.settle()
    other.settle()
    assert len(store.records()) == 3 * CHUNKS


def test_two_ranks_one_of_which_lost_a_record_have_a_shorter_hit(
    fleet: Fleet, store: RedisServer
) -> None:
    specs = {f"layers.{i}": FULL for i in range(2)}
    one = fleet.engine(specs=specs, tensor_parallel_size=2)
    one.ask(ASKED[0])
    one.settle()
    other = fleet.engine(specs=specs, tensor_parallel_size=2)
    assert len(store.records()) == 2 * CHUNKS
    third = list(brain(one).view.keys(1))[2]
    (name,) = (key for key in store.records() if b":r1:" in key and key.endswith(third))
    store.call(b"DEL", name)
    (cached,) = other.ask(ASKED[0])
    assert cached < CACHED
    assert brain(other).stats().tiers[1].failures[OpStatus.MISSING] == 1
    other.settle()


def test_engines_that_must_not_share_do_not(fleet: Fleet, store: RedisServer) -> None:
    one = fleet.engine()
    one.ask(ASKED[0])
    one.settle()
    assert fleet.engine(seed=7).ask(ASKED[0]) == [0], "other weights"
    assert fleet.engine(specs={f"layers.{i}": FULL for i in range(2)}).ask(ASKED[0]) == [0]


def test_a_damaged_record_is_a_miss_and_goes(fleet: Fleet, store: RedisServer) -> None:
    one, other = fleet.engine(), fleet.engine()
    one.ask(ASKED[0])
    one.settle()
    for key in store.records():
        store.call(b"SETRANGE", key, b"5000", b"\xff\xff\xff")
    assert other.ask(ASKED[0]) == [0]
    assert brain(other).stats().tiers[1].failures[OpStatus.CORRUPT] > 0
    other.settle()
    assert fleet.engine().ask(ASKED[0]) == [CACHED], "it was not written again"


def test_a_store_that_was_emptied_is_a_miss(fleet: Fleet, store: RedisServer) -> None:
    one, other = fleet.engine(), fleet.engine()
    one.ask(ASKED[0])
    one.settle()
    waiting = other.queue(ASKED[0])
    while not brain(other).stats().tiers[1].chunks:  # it believes in them
        other.step()
    store.call(b"FLUSHALL")
    while not waiting.is_finished():
        other.step()
    assert other.cached(waiting) in (0, CACHED), "all, if its reads were faster"
    other.settle()
    assert fleet.engine().ask(ASKED[1]) == [0]


@pytest.mark.parametrize("harm", ["stop", "kill"])
def test_a_store_that_is_gone_costs_little_and_the_disk_goes_on(
    fleet: Fleet, store: RedisServer, harm: str
) -> None:
    made = fleet.engine(disk=True)
    made.ask(ASKED[0])
    made.settle()
    made.reset()
    getattr(store, harm)()
    waited = []
    for i in range(1, 6):
        began = time.monotonic()
        made.ask(ASKED[i])
        waited.append(time.monotonic() - began)
    assert max(waited) < TIMEOUT_S + 1.0, waited
    began = time.monotonic()
    assert made.ask(ASKED[0]) == [CACHED]
    assert time.monotonic() - began < 1.0
    store.go_on() if harm == "stop" else store.start()
    brain(made)


def test_a_reset_takes_it_from_this_engine_only(fleet: Fleet, store: RedisServer) -> None:
    one, other = fleet.engine(), fleet.engine()
    one.ask(ASKED[0])
    one.settle()
    assert one.scheduler.reset_prefix_cache(reset_connector=True)
    one.step()
    before = store.records()
    assert one.ask(*ASKED[:2]) == [0, 0]
    assert brain(one).stats().load_refusals[Why.DETACHED] == 2
    one.settle()
    assert store.records() == before, "it is written to"
    assert other.ask(ASKED[0]) == [CACHED]
    assert fleet.engine().ask(ASKED[0]) == [CACHED], "and it was there for whoever starts anew"


def test_an_engine_whose_weights_nobody_else_can_name_leaves_it_alone(
    fleet: Fleet,
    store: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    made = fleet.engine()
    assert "kv is not used: the engine is in the process of its user" in caplog.text
    made.ask(ASKED[0])
    made.settle()
    assert store.records() == []


def test_a_model_with_windows_does_not_ask_yet_and_is_right(fleet: Fleet) -> None:
    specs = {"layers.0": FULL, "layers.1": WINDOW, "layers.2": FULL}
    one, other = fleet.engine(specs=specs), fleet.engine(specs=specs)
    one.ask(ASKED[0])
    one.settle()
    assert other.ask(ASKED[0]) == [0]
    assert brain(other).stats().tiers[1].asks == 0


@pytest.mark.parametrize("call", ["update_weights", "update_max_model_len"])
def test_an_engine_whose_workers_were_called_leaves_it_unless_no_weight_can_change(
    fleet: Fleet, store: RedisServer, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = fleet.engine()
    made.connector.scheduling.watch._called(call, None)
    made.ask(ASKED[0])
    made.settle()
    assert bool(store.records()) == (call == "update_max_model_len")
    assert ("workers were called (update_weights)" in caplog.text) == (call == "update_weights")
