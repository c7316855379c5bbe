"""The sections `replay:`, `trace:` and `medium:`: read, checked, and said in words what is wrong."""

from pathlib import Path

import pytest

from kvtier.config import MediumConfig, load
from kvtier.errors import ConfigError

DRAM = {"kind": "dram"}


def test_units_and_defaults() -> None:
    config = load(
        {
            "tiers": [{**DRAM, "medium": {"read": "20GiB", "latency": "2ms"}}],
            "replay": {"kv_bytes_per_token": "64KiB", "prefill_knee": "30k"},
        }
    )
    assert config.replay.kv_bytes_per_token == 64 << 10
    assert config.replay.prefill_knee == 30_000
    medium = MediumConfig(read=20 << 30, write=25 << 30, latency_s=0.002)
    nothing = {**DRAM, "medium": {"read": "20GiB", "latency": "2ms", "write": None, "ratio": None}}
    assert load({"tiers": [nothing]}).tiers[0].medium == medium
    assert config.tiers[0].medium == medium  # what is not said of tier 0 is not a disk's


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
        (
            {"replay": {"prefill_rate": float("nan")}},
            "replay.prefill_rate: expected a finite number",
        ),
        ({"replay": {"decode_rate": 1e300}}, "replay.decode_rate: expected a number <="),
        ({"tiers": [{**DRAM, "medium": {"laten": 1}}]}, r"tiers\[0\].medium.laten: .*'latency'"),
        ({"tiers": [{**DRAM, "medium": {"read": "fast"}}]}, r"tiers\[0\].medium.read: 'fast'"),
        ({"tiers": [{**DRAM, "medium": {"read": 0}}]}, r"tiers\[0\].medium.read: expected .* > 0"),
        ({"trace": {}}, "trace.record: missing"),
        ({"trace": {"record": "here"}}, "trace.record: 'here' is not absolute"),
        ({"trace": {"record": "/nowhere/t"}}, "trace.record: there is no directory '/nowhere'"),
        ({"trace": {"record": "/tmp"}}, "trace.record: '/tmp' is a directory"),
    ],
)
def test_mistakes(section: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load({"tiers": [DRAM], **section})
