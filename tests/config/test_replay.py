"""The sections `replay:` and `trace:`: read, checked, and said in words what is wrong."""

from pathlib import Path

import pytest

from kvtier.config import MediumConfig, load
from kvtier.errors import ConfigError

DRAM = {"kind": "dram"}


def test_units_and_defaults() -> None:
    config = load(
        {
            "tiers": [DRAM],
            "replay": {
                "kv_bytes_per_token": "64KiB",
                "prefill_knee": "30k",
                "tiers": {"dram": {"read": "20GiB", "latency": "2ms"}},
            },
        }
    )
    assert config.replay.kv_bytes_per_token == 64 << 10
    assert config.replay.prefill_knee == 30_000
    assert config.replay.tiers["dram"] == MediumConfig(read=20 << 30, latency_s=0.002)


def test_a_record_is_a_file_in_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    config = load({"tiers": [DRAM], "trace": {"record": str(file)}})
    assert config.trace is not None
    assert config.trace.record == str(file)
    assert load({"tiers": [DRAM], "trace": None}).trace is None


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"replay": {"prefil_rate": 5}}, "replay.prefil_rate: unknown key .*'prefill_rate'"),
        ({"replay": {"prefill_rate": 0}}, "replay.prefill_rate: expected a number > 0"),
        ({"replay": {"tiers": {"drm": {}}}}, "replay.tiers.drm: unknown key .*'dram'"),
        ({"replay": {"tiers": {"dram": {"laten": 1}}}}, "replay.tiers.dram.laten: .*'latency'"),
        ({"replay": {"tiers": {"dram": {"read": "fast"}}}}, "replay.tiers.dram.read: 'fast'"),
        ({"trace": {}}, "trace.record: missing"),
        ({"trace": {"record": "here"}}, "trace.record: 'here' is not absolute"),
        ({"trace": {"record": "/nowhere/t"}}, "trace.record: there is no directory '/nowhere'"),
        ({"trace": {"record": "/tmp"}}, "trace.record: '/tmp' is a directory"),
    ],
)
def test_mistakes(section: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load({"tiers": [DRAM], **section})
