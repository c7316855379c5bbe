"""What a rank says of the adapters that vLLM reads: their content, whether it is still loaded, and what the files hold."""

import functools
import inspect
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
    """Write an adapter, in place."""
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
    """Read an adapter as vLLM does; it is loaded as long as somebody holds it."""
    helper = PEFTHelper.from_local_dir(str(folder), 4096)
    return LoRAModel.from_local_checkpoint(
        str(folder), {"q_proj"}, helper, lora_model_id=number, device="cpu"
    )


def digests(of: Loras) -> dict[int, bytes]:
    (told,) = of.report(1, 0)
    return told.digests


def expected(of: Loras, path: object) -> bytes:
    (told,) = of.report(0, 1, [str(path)])
    return told.expected[str(path)]


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


def test_every_part_counts() -> None:
    one = torch.zeros(4096)
    parts: list[object] = [one, one.clone(), [one], [one, one], {"w": one}, one.bfloat16(), None]
    parts[1][4000] = 1.0  # type: ignore[index] # a tensor
    made = [SimpleNamespace(loras={"q": SimpleNamespace(part=part)}) for part in parts]
    assert len({loras._digest(model) for model in made}) == len(parts)


def test_a_rank_speaks_with_looks_and_with_steps_that_compute_with_adapters(tmp_path: Path) -> None:
    rank = Loras(3)
    assert rank.report(0, 0) == []
    assert rank.report(0, 7) == [Loaded(3, 0, {}, {})]
    write(tmp_path / "a")
    held = read(tmp_path / "a")
    (first,) = rank.report(5, 0)
    assert (first.rank, first.step, list(first.digests)) == (3, 5, [1])
    write(tmp_path / "a", 2.0)
    held = read(tmp_path / "a")
    assert digests(rank)[1] != first.digests[1]
    del held
    assert digests(rank) == {}, "vLLM holds it no longer"


def test_what_vllm_reads_and_does_not_take_is_not_loaded(tmp_path: Path) -> None:
    rank = Loras(0)
    write(tmp_path / "a")
    held = read(tmp_path / "a")
    first = digests(rank)
    write(tmp_path / "a", 2.0)
    refused = read(tmp_path / "a")
    assert digests(rank) == {1: b""}, "as long as nobody knows which of them"
    del refused
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
def test_files_that_are_not_as_they_were_read(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    rank, folder = Loras(0), tmp_path / "a"
    write(folder)
    assert expected(rank, folder) == b"", "never read"
    held = read(folder)
    known = digests(rank)[1]
    assert expected(rank, folder) == known
    (folder / "log.txt").write_text("whatever")
    assert expected(rank, f"{tmp_path}/b/../a") == known
    del held
    assert expected(rank, folder) == known, "also if it is not loaded any more"
    time.sleep(0.01)  # a tick
    change(folder)
    assert expected(rank, folder) == b""
    if change is not remove:
        read(folder)
        assert expected(rank, folder) == known


def test_files_that_are_just_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loras, "_SLACK_NS", 10**12)
    rank = Loras(0)
    write(tmp_path / "a")
    held = read(tmp_path / "a")
    assert digests(rank)[1]
    assert expected(rank, tmp_path / "a") == b""
    del held


def test_files_that_change_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, folder = Loras(0), tmp_path / "a"
    write(folder)
    theirs = LoRAModel.from_lora_tensors.__func__

    def built(cls: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.01)  # a tick
        write(folder, 2.0)
        return theirs(cls, *args, **kwargs)

    monkeypatch.setattr(LoRAModel, "from_lora_tensors", classmethod(built))
    held = read(folder)
    assert digests(rank) == {1: loras._digest(held)}
    assert expected(rank, folder) == b"", "the files hold something else by now"


def test_the_folders_that_are_remembered_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loras, "_FOLDERS", 1)
    rank = Loras(0)
    for name in ("a", "b"):
        write(tmp_path / name)
        read(tmp_path / name)
    assert [bool(expected(rank, tmp_path / name)) for name in ("a", "b")] == [False, True]


def test_a_reading_that_another_plugin_has_wrapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllms = inspect.unwrap(LoRAModel.from_local_checkpoint.__func__)

    @functools.wraps(vllms)
    def another(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return vllms(cls, *args, **kwargs)

    monkeypatch.setattr(LoRAModel, "from_local_checkpoint", classmethod(another))
    rank = Loras(0)
    write(tmp_path / "a")
    held = read(tmp_path / "a")
    assert list(digests(rank)) == [held.id]


def test_a_vllm_that_reads_in_another_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(LoRAModel, "from_local_checkpoint")
    assert digests(Loras(0)) == {}
    assert "not kept with this vLLM: type object 'LoRAModel' has no attribute" in caplog.text


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
