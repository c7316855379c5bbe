"""What a configuration means once it was loaded."""

import pickle
from pathlib import Path

import msgspec
import pytest

from kvtier.config import (
    Config,
    IoConfig,
    Plugin,
    TierConfig,
    default_dram_nbytes,
    digest,
    from_builtins,
    load,
    to_builtins,
)
from kvtier.topology import free_nbytes
from kvtier.types import WriteMode

FULL = """
chunk_tokens: 128
store: prompt
weights_id: v7
persist_lora: true
max_wait: 45s
prefetch: [arrival]
io: {threads: 4, idle_write: 64MiB, queue: 10000}
tiers:
  - {name: dram, kind: dram, capacity: 64GiB, numa: [0], eviction: lru}
  - name: nvme
    kind: file
    path: %s
    capacity: 1.5TiB
    codec: {kind: zstd, level: 3}
    deadline: 500ms
"""


@pytest.fixture
def full(tmp_path: Path) -> Config:
    file = tmp_path / "kvtier.yaml"
    file.write_text(FULL % tmp_path)
    return load(file)


def test_nothing_given_is_one_dram_tier_of_automatic_size() -> None:
    assert load(None) == Config()
    assert Config().tiers == (TierConfig(name="dram", kind="dram", capacity=None),)


def test_every_key_arrives(full: Config, tmp_path: Path) -> None:
    assert (full.chunk_tokens, full.store, full.weights_id) == (128, "prompt", "v7")
    assert full.persist_lora
    assert (full.max_wait_s, Config().max_wait_s) == (45.0, 30.0)
    assert full.prefetch == (Plugin(kind="arrival"),)
    assert full.io == IoConfig(threads=4, idle_write=64 << 20, queue=10_000)
    dram, nvme = full.tiers
    assert (dram.capacity, dram.numa, dram.eviction) == (64 << 30, (0,), Plugin(kind="lru"))
    assert (nvme.capacity, nvme.deadline_s) == (3 << 39, 0.5)
    assert nvme.options["path"] == str(tmp_path)
    assert nvme.codec.kind == "zstd"
    assert nvme.codec.options["level"] == 3


def test_what_outlives_the_engine_is_written_behind(full: Config) -> None:
    assert [tier.write for tier in full.tiers] == [WriteMode.ON_EVICT, WriteMode.IDLE]


def test_a_chosen_write_mode_stays(tmp_path: Path) -> None:
    lower = {"kind": "file", "path": str(tmp_path), "capacity": "1MiB", "write": "through"}
    assert load({"tiers": [{"kind": "dram"}, lower]}).tiers[1].write is WriteMode.THROUGH


def test_auto_is_the_default_everywhere() -> None:
    tier = {"kind": "dram", "capacity": "auto", "numa": "auto"}
    assert load({"chunk_tokens": "auto", "weights_id": "auto", "tiers": [tier]}) == Config()


def test_one_numa_node_needs_no_list() -> None:
    assert load({"tiers": [{"kind": "dram", "numa": 0}]}).tiers[0].numa == (0,)


def test_the_mapping_and_its_file_are_the_same(full: Config, tmp_path: Path) -> None:
    raw = msgspec.yaml.decode(FULL % tmp_path)
    assert load(raw) == full
    assert digest(load(raw)) == digest(full)


def test_builtins_and_pickle_bring_it_back(full: Config) -> None:
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(to_builtins(full)))
    assert from_builtins(wire) == full
    assert pickle.loads(pickle.dumps(full)) == full
    assert digest(from_builtins(wire)) == digest(full)


def test_the_digest_sees_every_change(full: Config) -> None:
    changed = msgspec.structs.replace(
        full, io=IoConfig(threads=5, idle_write=64 << 20, queue=10_000)
    )
    assert digest(changed) != digest(full)


def test_the_default_share_is_a_quarter_of_the_free_memory() -> None:
    assert default_dram_nbytes(2) == pytest.approx(free_nbytes() / 8, rel=0.2)


def test_options_of_a_dataclass_plugin_are_completed() -> None:
    eviction = {"kind": "tests.config.plugins:FadingPolicy", "half_life_s": 3}
    loaded = load({"tiers": [{"kind": "dram", "eviction": eviction}]}).tiers[0].eviction
    assert loaded.options == {"half_life_s": 3.0, "ghosts": 0}
