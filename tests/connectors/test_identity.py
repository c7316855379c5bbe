"""Weights are told apart by what they are; whatever may be another content has another name."""

import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from huggingface_hub import constants

from kvtier.connectors.vllm import identity, plugin, weights
from kvtier.connectors.vllm.weights import Weights, identify
from kvtier.io_process.weights import LEDGER, Reader, peek
from tests.patience import HANG_S

NBYTES = 4 << 20  # samples see a quarter
BETWEEN = 100_000  # a byte that no sample sees
NAME = "model.safetensors"


@pytest.fixture(autouse=True)
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be older than the process that loads it."""
    monkeypatch.setattr(plugin, "registered_ns", time.time_ns() + 3600 * 10**9)


def model(path: Path, content: bytes = b"w" * NBYTES, config: str = "{}") -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config)
    (path / NAME).write_bytes(content)
    return path


def look(
    path: Path | str, folder: Path | None, load_format: str = "auto", **more: object
) -> Weights:
    described: Any = SimpleNamespace(**{"model": str(path), "revision": None, "seed": 0, **more})
    load: Any = SimpleNamespace(
        load_format=load_format,
        download_dir=described.__dict__.pop("download_dir", None),
        model_loader_extra_config=described.__dict__.pop("extra", {}),
    )
    return identify(described, load, folder)


def start(path: Path, folder: Path, bytes_per_s: float = 1e12, **more: Any) -> Weights:
    """Identify as a start does, and let the I/O process find out what it can."""
    found = look(path, folder, **more)
    assert found.unread is not None
    reader = Reader(found.unread, lambda: False, bytes_per_s=bytes_per_s)
    reader.thread.join(HANG_S)
    assert not reader.thread.is_alive()
    return found


def change(path: Path, at: int = BETWEEN) -> None:
    """Change one byte in place."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"x")


def test_the_first_name_stays_when_the_content_is_known(tmp_path: Path) -> None:
    path = model(tmp_path / "model")
    first = start(path, tmp_path)
    assert first.name.startswith("private:")
    assert [start(path, tmp_path).name for _ in range(2)] == [first.name] * 2


def test_a_touched_file_and_a_copy_are_known_again_once_they_were_read(tmp_path: Path) -> None:
    path, copy = model(tmp_path / "model"), model(tmp_path / "copy")
    first = start(path, tmp_path)
    os.utime(path / NAME, (1, 1))
    for other in (path, copy):
        assert start(other, tmp_path).name != first.name, "nobody has read it yet"
        assert start(other, tmp_path).name == first.name


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("at", [0, BETWEEN, NBYTES - 1])
def test_a_byte_changed_in_place_is_another_model_even_with_the_old_times(
    tmp_path: Path, at: int, read_before: bool
) -> None:
    path = model(tmp_path / "model")
    begin = start if read_before else look
    before, stat = begin(path, tmp_path), (path / NAME).stat()
    change(path / NAME, at)
    os.utime(path / NAME, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    names = [begin(path, tmp_path).name for _ in range(3)]
    assert before.name not in names
    assert len(set(names)) == 1


def test_the_settings_beside_the_weights_count(tmp_path: Path) -> None:
    path = model(tmp_path / "model")
    first = start(path, tmp_path)
    (path / "config.json").write_text('{"rope": 2}')
    assert start(path, tmp_path).name not in (first.name, "")


@pytest.mark.parametrize(
    "name",
    [
        *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
        "model.safetensors.index.json",
    ],
)
def test_what_prepares_media_and_what_chooses_files_counts(tmp_path: Path, name: str) -> None:
    path = model(tmp_path / "model")
    (path / name).write_text("1")
    first = start(path, tmp_path)
    (path / name).write_text("2")
    second = start(path, tmp_path)
    assert second.name not in (first.name, "")
    assert second.sample == first.sample, "nodes of one engine may start without it"


def test_another_loader_takes_other_files(tmp_path: Path) -> None:
    path = model(tmp_path / "model")
    (path / "model.pt").write_bytes(b"v" * NBYTES)
    names = {
        look(path, tmp_path, "safetensors").name,
        look(path, tmp_path, "pt").name,
        look(path, tmp_path, "sharded_state", extra={"pattern": "a-{rank}-{part}"}).name,
        look(path, tmp_path, "sharded_state", extra={"pattern": "b-{rank}-{part}"}).name,
    }
    assert len(names) == 4


def test_a_configuration_from_another_place_counts(tmp_path: Path) -> None:
    path, other = model(tmp_path / "model"), model(tmp_path / "other", config='{"eps": 1}')
    names = {start(path, tmp_path).name}
    for text in ('{"eps": 1}', '{"eps": 2}'):
        (other / "config.json").write_text(text)
        names.add(start(path, tmp_path, hf_config_path=str(other)).name)
    assert len(names) == 3
    assert look(path, tmp_path, hf_config_path="no/where").name == ""


class _Resolved(str):
    """A branch as the hub's client resolved it, when vLLM asked."""

    __slots__ = ()
    resolved = "1" * 40


def snapshot(cache: Path, commit: str) -> Path:
    """Make a model's directory in a cache of the hub."""
    repository = cache / "models--org--model"
    folder = repository / "snapshots" / (commit * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit * 40)
    return folder


def test_a_branch_that_moved_since_is_not_what_was_loaded(tmp_path: Path) -> None:
    for commit in "12":
        model(snapshot(tmp_path, commit), commit.encode() * NBYTES)
    found = look("org/model", tmp_path, revision=_Resolved("main"), download_dir=str(tmp_path))
    assert found.unread is not None
    assert [Path(file.path).parent.name for file in found.unread.files] == ["1" * 40]


def test_weights_that_were_fetched_into_another_directory_than_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    (snapshot(tmp_path, "1") / NAME).write_bytes(b"w" * NBYTES)
    there = partial(look, "org/model", tmp_path, download_dir=str(tmp_path))
    assert there().name == ""
    names = set()
    config = snapshot(hub, "1") / "config.json"
    for text in ('{"eps": 1}', '{"eps": 2}'):
        config.write_text(text)
        names |= {there().name, there().name}
    assert len(names) == 2
    assert "" not in names


def test_two_hosts_call_the_same_blobs_the_same(tmp_path: Path) -> None:
    names = set()
    for host in ("one", "two"):
        blobs, snapshot = tmp_path / host / "blobs", tmp_path / host / "snapshots" / "main"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        (blobs / ("ab" * 32)).write_bytes(b"w" * NBYTES)
        (snapshot / NAME).symlink_to(blobs / ("ab" * 32))
        names.add(start(snapshot, tmp_path / host).name)
    assert len(names) == 1
    assert names.pop().startswith("content:")
    first = start(snapshot, tmp_path / "two").name
    change(snapshot / NAME)  # through the link, so in the blob itself
    assert len({first, *(start(snapshot, tmp_path / "two").name for _ in range(2))}) == 2


def test_a_regular_file_in_a_snapshot_is_no_blob(tmp_path: Path) -> None:
    snapshot = model(tmp_path / "snapshots")
    first = start(snapshot, tmp_path)
    change(snapshot / NAME)
    assert start(snapshot, tmp_path).name != first.name


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path) -> None:
    path = model(tmp_path / "model")
    found = look(path, tmp_path)
    assert found.unread is not None
    slices = iter(range(100))

    def meanwhile(seconds: float) -> None:
        if next(slices) == 2:
            change(path / NAME)

    Reader(found.unread, lambda: False, sleep=meanwhile).thread.join(HANG_S)
    assert not (tmp_path / LEDGER).exists()


def test_a_reader_that_is_cut_short_goes_on_at_the_next_start(tmp_path: Path) -> None:
    path = model(tmp_path / "model")
    (path / "second.safetensors").write_bytes(b"v" * NBYTES)
    first = look(path, tmp_path)
    assert first.unread is not None
    slices = iter(range(100))

    def ending(seconds: float) -> None:
        if next(slices) == 6:  # in the second file
            raise OSError("the process ends")

    Reader(first.unread, lambda: False, sleep=ending).thread.join(HANG_S)
    again = look(path, tmp_path)
    assert again.name == first.name
    assert again.unread is not None
    assert [bool(file.sha256) for file in again.unread.files] == [True, False]
    assert {start(path, tmp_path).name for _ in range(2)} == {first.name}


@pytest.mark.parametrize(("busy", "slower"), [(False, 1), (True, 16)])
def test_it_reads_slowly_and_more_so_while_operations_wait(
    tmp_path: Path, busy: bool, slower: int
) -> None:
    found = look(model(tmp_path / "model"), tmp_path)
    assert found.unread is not None
    slept: list[float] = []
    reader = Reader(found.unread, lambda: busy, bytes_per_s=1 << 20, sleep=slept.append)
    reader.thread.join(HANG_S)
    assert sum(slept) == pytest.approx(NBYTES / (1 << 20) * slower)


@pytest.mark.parametrize("registered_ns", [0, time.time_ns()], ids=["never", "now"])
def test_what_changed_after_the_load_began_has_no_name(
    tmp_path: Path, registered_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(tmp_path / "model")
    monkeypatch.setattr(plugin, "registered_ns", registered_ns)
    found = look(path, tmp_path)
    assert (found.name, found.unread) == ("", None)
    assert "changed after this process began" in found.why


def test_a_disk_that_does_not_answer_costs_seconds_and_no_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"w" * NBYTES)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / NAME).symlink_to(blob)
    os.mkfifo(tmp_path / LEDGER)
    monkeypatch.setattr(weights, "peek", partial(peek, timeout_s=0.1))
    assert look(tmp_path / "model", tmp_path).name.startswith("private:")


def test_a_disk_that_was_slow_at_one_start_does_not_rename_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"w" * NBYTES)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / NAME).symlink_to(blob)
    first = start(tmp_path / "model", tmp_path)
    with monkeypatch.context() as slow:
        slow.setattr(weights, "peek", lambda folder: None)
        assert start(tmp_path / "model", tmp_path).name.startswith("private:")
    assert start(tmp_path / "model", tmp_path).name == first.name


def test_a_damaged_memory_is_none(tmp_path: Path) -> None:
    path = model(tmp_path / "model")
    first = start(path, tmp_path)
    (tmp_path / LEDGER).write_bytes(b"\xff{")
    assert start(path, tmp_path).name == first.name
    (tmp_path / LEDGER).unlink()
    (tmp_path / LEDGER).symlink_to("/dev/zero")
    assert look(path, tmp_path).name == first.name


def test_a_model_in_one_file_is_that_file_and_its_parts(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"m-0000{part}-of-00002.gguf").write_bytes(bytes(NBYTES))
    one = tmp_path / "m-00001-of-00002.gguf"
    first = start(one, tmp_path)
    assert start(one, tmp_path).name == first.name
    change(tmp_path / "m-00002-of-00002.gguf")
    assert start(one, tmp_path).name != first.name


@pytest.mark.parametrize(
    ("path", "more", "why"),
    [
        ("models/a/b.gguf", {}, "neither a local path nor in the hub's cache"),
        ("/nowhere/at all", {}, "neither a local path nor in the hub's cache"),
        ("/tmp", {"model_weights": "s3://bucket/x"}, "they come from s3://bucket/x"),
        ("/tmp", {"load_format": "tensorizer"}, "load_format tensorizer"),
        (
            "/tmp",
            {"hf_config": SimpleNamespace(text_model_id="a/b")},
            "a part of them comes from a/b",
        ),
        ("x" * 300, {}, "they cannot be read"),
    ],
)
def test_what_cannot_be_found_has_no_name_and_a_reason(
    path: str, more: dict[str, Any], why: str, tmp_path: Path
) -> None:
    found = look(path, tmp_path, **more)
    assert (found.name, found.unread) == ("", None)
    assert why in found.why


def test_options_that_change_what_is_computed_are_in_the_manifest_when_given() -> None:
    media = SimpleNamespace(mm_processor_kwargs=None, video_pruning_rate=None)
    described: Any = SimpleNamespace(quantization_config=None, multimodal_config=media)
    assert identity._switches(described) == {}
    described.quantization_config = {"linear": "mxfp8"}
    media.video_pruning_rate = 0.5
    assert identity._switches(described) == {
        "switches": {"quantization_config": "{'linear': 'mxfp8'}", "video_pruning_rate": "0.5"}
    }


def test_a_draft_is_named_by_its_method_and_path_and_not_by_its_weights() -> None:
    """The model checks every token of a draft, so old KV of the draft makes answers no other."""

    def described(**draft: object) -> dict[str, object]:
        made: Any = SimpleNamespace(
            model_config=SimpleNamespace(
                hf_config=SimpleNamespace(),
                max_model_len=1,
                multimodal_config=None,
                dtype="float32",
                quantization=None,
            ),
            speculative_config=SimpleNamespace(**draft) if draft else None,
        )
        return identity._of_model(made)

    drafts = [
        described(),
        described(method="eagle", model="a"),
        described(method="eagle", model="b"),
        described(method="draft_model", model="a"),
    ]
    assert len({repr(each) for each in drafts}) == len(drafts)
    assert described(method="eagle", model="a", draft_weights="other") == drafts[1]
