"""Weights are told apart by what they are, never by when they were written."""

import os
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm.identity import weights_identity


def model(path: Path, weights: bytes = b"w" * 300_000, config: str = "{}") -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config)
    (path / "model.safetensors").write_bytes(weights)
    return str(path)


def identity(path: str) -> str:
    return weights_identity(path, None, "auto", 0)


def test_a_copy_is_the_same_and_a_touched_file_too(tmp_path: Path) -> None:
    one, two = model(tmp_path / "one"), model(tmp_path / "two")
    os.utime(Path(two) / "model.safetensors", (1, 1))
    assert identity(one) == identity(two) != ""


@pytest.mark.parametrize("at", [0, 150_000, 299_999])
def test_other_weights_are_not(tmp_path: Path, at: int) -> None:
    changed = bytearray(b"w" * 300_000)
    changed[at] ^= 1
    one, two = model(tmp_path / "one"), model(tmp_path / "two", bytes(changed))
    assert identity(one) != identity(two)


def test_another_configuration_is_not(tmp_path: Path) -> None:
    one, two = model(tmp_path / "one"), model(tmp_path / "two", config='{"rope": 2}')
    assert identity(one) != identity(two)


@pytest.mark.parametrize("name", ["models/a/b.gguf", "s3://bucket/x/y", "/nowhere/at all"])
def test_what_cannot_be_found_has_no_identity(name: str) -> None:
    assert identity(name) == ""


def test_a_snapshot_is_its_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / "snapshots").mkdir()
    assert identity(model(tmp_path / "snapshots" / commit)) == f"commit:{commit}"
