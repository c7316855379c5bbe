"""A tier that engines share in the YAML: what it is not to be told, and where it stands."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kvtier.cli.main import build
from kvtier.config import load
from kvtier.config.schema import schema
from kvtier.errors import ConfigError
from kvtier.sim.jobs import tier_jobs
from kvtier.types import WriteMode

DRAM = {"kind": "dram", "capacity": "1GiB"}
KV = {"name": "kv", "kind": "redis", "url": "redis://kv:6379"}
FAR = {"kind": "memory", "capacity": "1GiB"}


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_it_has_no_capacity_and_is_written_at_leisure(kind: str) -> None:
    (_, tier) = load({"tiers": [DRAM, {**KV, "kind": kind}]}).tiers
    assert (tier.capacity, tier.write, tier.persistent) == (None, WriteMode.IDLE, True)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"capacity": "1GiB"}, r"tiers\[1\].capacity: not for redis: its server says how much"),
        ({"eviction": "lru"}, r"tiers\[1\].eviction: not for redis: its server chooses"),
        ({"wrappers": ["slow"]}, r"tiers\[1\].wrappers: not for redis"),
        ({"numa": 0}, r"tiers\[1\].numa: 'redis' keeps nothing in memory"),
        ({"write": "on_evict"}, r"tiers\[1\].write: 'on_evict' is not for redis"),
        ({"password": "x"}, r"tiers\[1\].password: unknown key"),
        ({"codec": "zstd_dict"}, r"tiers\[1\].codec: zstd_dict keeps"),
        ({"url": "redis://:secret@kv"}, r"tiers\[1\]: url: no user and no password"),
        (
            {"password_env": "KVTIER_NO_SUCH"},
            r"tiers\[1\]: password_env: KVTIER_NO_SUCH is not set",
        ),
        ({"prefix": "a:b"}, r"tiers\[1\].*prefix"),
    ],
)
def test_what_it_is_not_to_be_told(more: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load({"tiers": [DRAM, {**KV, **more}]})


def test_this_machines_tiers_stand_above_it() -> None:
    assert len(load({"tiers": [DRAM, FAR, KV]}).tiers) == 3
    with pytest.raises(ConfigError, match=r"tiers\[2\]: below 'kv', which engines share"):
        load({"tiers": [DRAM, KV, FAR]})


def test_an_editor_is_told_the_same() -> None:
    kinds = schema()["properties"]["tiers"]["items"]["anyOf"]
    (found,) = (each for each in kinds if each["properties"]["kind"].get("const") == "redis")
    assert set(found["required"]) == {"kind", "url"}
    assert not found["properties"].keys() & {"capacity", "eviction", "wrappers", "numa"}


def test_config_check_explains_it_and_a_replay_refuses_it(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text(yaml.safe_dump({"tiers": [{**DRAM, "capacity": "1MiB"}, KV]}))
    done = CliRunner().invoke(build(), ["config", "check", str(file)], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert "kv: other engines may use it too" in done.output
    with pytest.raises(ConfigError, match="one engine is replayed"):
        tier_jobs(load(file), [], [1000])
