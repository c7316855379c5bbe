"""Latent attention over tensor-parallel ranks: all have the same KV, so one keeps the records that all of them read."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_cache_interface import MLAAttentionSpec

from kvtier.config import load, of_rank
from kvtier.errors import TierError
from kvtier.io_process.buffers import aligned
from kvtier.tier import Site
from kvtier.tiers.file import FileConfig, FileTier
from kvtier.tiers.reader import FileReader
from kvtier.types import PAGE
from tests.connectors.no_model import NoModelEngine
from tests.connectors.test_caches import LATENT
from tests.engine.models import prompts
from tests.engine.scenarios import nvme
from tests.modes import tiny

if not hasattr(LATENT, "max_tp_shards"):
    pytest.skip("this vLLM does not say which ranks have the same KV", allow_module_level=True)

ASKED = prompts(4, 200, seed=6)
CACHED = 192
Start = Callable[..., AbstractContextManager[NoModelEngine]]


def spec() -> MLAAttentionSpec:
    return replace(LATENT, max_tp_shards=1)  # as vLLM's layer says it


def _start(folder: Path, capacity: str = "1GiB") -> AbstractContextManager[NoModelEngine]:
    kvtier = nvme(folder / "kv", capacity, dram_capacity="4MiB", write="through")
    kvtier["chunk_tokens"] = 32
    specs = {f"layers.{i}": spec() for i in range(3)}
    model = tiny.make(folder, "deepseek-v2")
    made = NoModelEngine(model, specs, kvtier, blocks=128, tensor_parallel_size=2)
    made.settle()
    return closing(made)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start an engine of two ranks; the next one finds what this one has written."""
    return partial(_start, tmp_path)


def records(folder: Path) -> list[Path]:
    found = sorted((folder / "kv").rglob("*.kvt"))
    assert {path.parents[1].name for path in found} <= {"r0"}
    return found


def brain(engine: NoModelEngine) -> Any:
    made = engine.connector.scheduling.brain
    made.check()
    return made


def test_after_a_restart_every_rank_has_its_kv(
    start: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with start() as engine:
        said = (
            capsys.readouterr().out + caplog.text
        )  # vLLM's log is in either, as tests before left it
        assert "the first keeps one record for all in ['nvme']" in said
        assert engine.ask(*ASKED) == [0] * 4
        engine.settle()
        assert brain(engine).stats().tiers[1].capacity == 1 << 30, "not half of it"
    assert len(records(tmp_path)) == 4 * CACHED // 32
    with start() as engine:
        assert engine.ask(*ASKED) == [CACHED] * 4
        engine.settle()
        engine.reset()
        arena = engine.workers[1].rank.worker.arena
        for slot in range(arena.slots):
            arena.slot(slot)[:64] ^= 1
        with pytest.raises(AssertionError, match=r"other KV"):
            engine.ask(ASKED[0])  # tier 0 is each rank's own


def test_a_record_that_is_corrupt_goes(start: Start, tmp_path: Path) -> None:
    with start() as engine:
        engine.ask(*ASKED)
    for path in records(tmp_path):
        with path.open("r+b") as file:
            file.seek(2 * PAGE)
            file.write(b"corrupt")
    with start() as engine:
        assert engine.ask(*ASKED) == [0] * 4
        engine.settle()
        engine.reset()
        assert engine.ask(*ASKED) == [CACHED] * 4
        brain(engine)
    with start() as engine:
        assert engine.ask(*ASKED) == [CACHED] * 4


def test_what_leaves_is_removed_by_who_keeps_it(start: Start, tmp_path: Path) -> None:
    with start("1MiB") as engine:
        for prompt in prompts(24, 200, seed=7):
            engine.ask(prompt)
            engine.settle()
        used = brain(engine).stats().tiers[1]
        assert used.evictions
        assert sum(path.stat().st_size for path in records(tmp_path)) <= 1 << 20


@pytest.mark.parametrize("rank", [0, 1])
def test_an_io_process_dies(start: Start, tmp_path: Path, rank: int) -> None:
    with start() as engine:
        engine.ask(*ASKED[:2])
        engine.settle()
        io = engine.workers[rank].rank.worker.io
        assert io is not None
        assert io.pid is not None
        os.kill(io.pid, signal.SIGKILL)
        engine.ask(*ASKED[2:])
        engine.settle()
        engine.reset()
        assert engine.ask(*ASKED) == [CACHED] * 4
        engine.settle()
        brain(engine)
    with start() as engine:
        assert engine.ask(*ASKED[:2]) == [CACHED] * 2


def test_after_a_reset_nothing_of_before_is_found(start: Start, tmp_path: Path) -> None:
    with start() as engine:
        engine.ask(*ASKED)
        engine.settle()
        assert engine.scheduler.reset_prefix_cache(reset_connector=True)
        assert engine.ask(*ASKED[:2]) == [0] * 2
        engine.settle()
    with start() as engine:
        assert engine.ask(*ASKED) == [0] * 4


def test_only_tiers_that_can_be_kept_once_have_their_whole_capacity() -> None:
    tiers = [
        {"kind": "dram", "capacity": "8GiB"},
        {"name": "far", "kind": "memory", "capacity": "8GiB"},
        {"name": "nvme", "kind": "file", "path": "/x", "capacity": "8GiB"},
    ]
    config = load({"tiers": tiers})
    for copies, whole in ((False, 1), (True, 8)):
        mine = of_rank(config, 8, copies=copies)
        assert [tier.capacity for tier in mine.tiers] == [1 << 30, 1 << 30, whole << 30]


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    config, site, key = FileConfig(path=str(tmp_path)), Site("nvme"), bytes(20)
    keeper, reader = FileTier(config, site), FileReader(config, site)
    page, found = aligned(PAGE), aligned(PAGE)
    page[:] = 7
    with pytest.raises(TierError, match="no namespace is open"):
        reader.read(key, [found])
    reader.open("a" * 32, "{}")
    assert (reader.read(key, [found]), list(reader.scan())) == (0, [])
    keeper.open("a" * 32, "{}")
    keeper.write(key, [page])
    assert reader.read(key, [found]) == PAGE
    assert bytes(found) == bytes(page)
    assert [entry.key for entry in reader.scan()] == [key]
    assert not reader.remove(key)
    with pytest.raises(TierError, match="rank 0 keeps the records"):
        reader.write(key, [page])
    assert reader.read(key, [found]) == PAGE
    keeper.reset("b" * 32, "{}")
    reader.reset("b" * 32, "{}")
    assert reader.read(key, [found]) == 0
    for tier in (reader, keeper):
        tier.close()
