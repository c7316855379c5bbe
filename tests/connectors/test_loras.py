"""What a rank says of the adapters that vLLM reads: their content, whether it is still loaded, whether the files are as read."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from safetensors.torch import save_file
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from kvtier.connectors.vllm import loras
from kvtier.connectors.vllm.adapters import Loaded
from kvtier.connectors.vllm.loras import Loras

SETTINGS = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_type": "LORA"}


def write(folder: Path, value: float = 1.0, **settings: object) -> None:
    """Write an adapter, in place, that changed long ago."""
    folder.mkdir(exist_ok=True)
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{at}.lora_A.weight": torch.ones(2, 8) * value,
        f"{at}.lora_B.weight": torch.ones(8, 2),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))


@pytest.fixture(autouse=True)
def no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test does not wait until its files are old."""
    monkeypatch.setattr(loras, "_SLACK_NS", -(10**12))


def read(folder: Path, number: int = 1) -> Any:
    helper = PEFTHelper.from_local_dir(str(folder), 4096)
    return LoRAModel.from_local_checkpoint(
        str(folder), {"q_proj"}, helper, lora_model_id=number, device="cpu"
    )


def digests(of: Loras, look: int = 0) -> dict[int, bytes]:
    (told,) = of.report(look)
    return told.digests


def test_the_content_is_what_is_hashed(tmp_path: Path) -> None:
    rank = Loras(0)
    write(tmp_path / "a")
    write(tmp_path / "copy")
    write(tmp_path / "weights", 2.0)
    write(tmp_path / "alpha", lora_alpha=8)
    names = ("a", "copy", "weights", "alpha")
    held = [read(tmp_path / name, i) for i, name in enumerate(names, 1)]
    told = digests(rank)
    assert told[1] == told[2]
    assert len({*told.values()}) == 3
    assert len(held) == len(told)


def test_news_are_told_once_and_everything_with_a_look(tmp_path: Path) -> None:
    rank = Loras(3)
    assert rank.report() == []
    assert rank.report(look=1) == [Loaded(3, 1, {})]
    write(tmp_path / "a")
    held = read(tmp_path / "a")
    first = digests(rank)[1]
    assert rank.report() == []
    assert rank.report(look=2) == [Loaded(3, 2, {1: first})]
    write(tmp_path / "a", 2.0)
    held = read(tmp_path / "a")
    (told,) = rank.report()
    assert told.look == 2
    assert told.digests[1] != first
    del held
    assert rank.report() == [Loaded(3, 2, {})], "vLLM holds it no longer"
    assert rank.report() == []


def test_what_vllm_reads_and_does_not_take_is_not_loaded(tmp_path: Path) -> None:
    rank = Loras(0)
    write(tmp_path / "a")
    held = read(tmp_path / "a")
    first = digests(rank)
    write(tmp_path / "a", 2.0)
    read(tmp_path / "a")
    assert digests(rank) == first
    del held


def rewrite(folder: Path) -> None:
    write(folder)


def touch(folder: Path) -> None:
    os.utime(folder / "adapter_model.safetensors")


def add(folder: Path) -> None:
    (folder / "new_embeddings.safetensors").write_bytes(b"")


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize("change", [rewrite, touch, add, remove])
def test_files_that_are_not_as_they_were_read(tmp_path: Path, change: Any) -> None:
    rank, folder = Loras(0), tmp_path / "a"
    write(folder)
    held = read(folder)
    known = digests(rank)
    rank.check({1: str(folder)})
    assert digests(rank, look=1) == known
    (folder / "log.txt").write_text("whatever")
    rank.check({1: str(folder)})
    assert digests(rank, look=2) == known
    time.sleep(0.01)  # a tick
    change(folder)
    assert digests(rank, look=3) == known, "nobody asks"
    rank.check({1: str(folder)})
    assert digests(rank, look=4) == {1: b""}
    assert digests(rank, look=5) == {1: b""}
    if change is not remove:
        held = read(folder)
        assert digests(rank) == known
    del held


def test_another_path_and_another_adapter_are_not_what_was_read(tmp_path: Path) -> None:
    rank = Loras(0)
    write(tmp_path / "a")
    write(tmp_path / "b")
    held = read(tmp_path / "a")
    known = digests(rank)
    rank.check({1: f"{tmp_path}/b/../a", 2: "/nowhere"})
    assert digests(rank, look=1) == known
    rank.check({1: str(tmp_path / "b")})
    assert digests(rank, look=2) == {1: b""}
    del held


def test_files_that_are_just_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loras, "_SLACK_NS", 10**12)
    rank = Loras(0)
    write(tmp_path / "a")
    held = read(tmp_path / "a")
    assert digests(rank)[1]
    rank.check({1: str(tmp_path / "a")})
    assert digests(rank, look=1) == {1: b""}
    del held


def test_a_bug_of_ours_keeps_nobody_from_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = Loras(0)
    write(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr("xxhash.xxh3_128", lambda: None)
        held = read(tmp_path / "a")
    assert digests(rank) == {1: b""}
    with monkeypatch.context() as patch:
        patch.setattr(rank, "_read", None)
        assert read(tmp_path / "a").id == 1
    del held
