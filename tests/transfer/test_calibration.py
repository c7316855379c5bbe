"""The way is chosen by what was measured, and by what it costs the multiprocessors."""

from pathlib import Path as FilePath
from typing import Any

import pytest
import torch

from kvtier.memory.arena import Arena
from kvtier.transfer import calibration
from kvtier.transfer.calibration import Calibration, Rate, calibrate, user_folder
from kvtier.transfer.engine import ChunkCopy
from kvtier.transfer.paths import Direction, Path
from kvtier.transfer.stream_engine import StreamTransferEngine
from tests.transfer.contract import pages
from tests.transfer.simulated import ImmediateStreams, RecordingCopier, hardware

FAST = (Path.BATCHED, Path.STAGED, Path.KERNEL)
KIB = 1 << 10


def table(**speeds: tuple[float, float]) -> Calibration:
    """Speeds of each way at 4 KiB and at 64 KiB."""
    rates = [
        Rate(Direction.ONLOAD, Path(path), nbytes, speed)
        for path, pair in speeds.items()
        for nbytes, speed in zip((4 * KIB, 64 * KIB), pair, strict=True)
    ]
    return Calibration("d", tuple(rates))


@pytest.mark.parametrize(
    ("nbytes", "path"),
    [
        (1, Path.KERNEL),
        (4 * KIB, Path.KERNEL),
        (16 * KIB, Path.KERNEL),
        (48 * KIB, Path.BATCHED),
        (64 * KIB, Path.BATCHED),
        (1 << 20, Path.BATCHED),
    ],
)
def test_the_fastest_way_at_that_size(nbytes: int, path: Path) -> None:
    measured = table(batched=(5, 52), staged=(20, 30), kernel=(45, 45))
    assert measured.best(Direction.ONLOAD, nbytes, FAST) is path


def test_within_five_percent_what_takes_fewest_multiprocessors() -> None:
    measured = table(batched=(90, 96), staged=(96, 97), kernel=(100, 100))
    assert measured.best(Direction.ONLOAD, 4 * KIB, FAST) is Path.STAGED
    assert measured.best(Direction.ONLOAD, 64 * KIB, FAST) is Path.BATCHED


def test_speeds_between_sizes_are_on_a_logarithmic_scale() -> None:
    measured = table(batched=(10, 50))
    assert measured.speed(Direction.ONLOAD, Path.BATCHED, 16 * KIB) == 30
    assert measured.speed(Direction.OFFLOAD, Path.BATCHED, 16 * KIB) == 0


def test_a_calibration_is_kept_per_device(tmp_path: FilePath) -> None:
    measured = [0]

    def measure() -> tuple[Rate, ...]:
        measured[0] += 1
        return table(batched=(1, 2)).rates

    first = calibrate("NVIDIA H200 / a", tmp_path, [Path.BATCHED], measure)
    assert calibrate("NVIDIA H200 / a", tmp_path, [Path.BATCHED], measure) == first
    assert measured == [1]
    calibrate("NVIDIA H200 / b", tmp_path, [Path.BATCHED], measure)
    calibrate("NVIDIA H200 / a", tmp_path, FAST, measure)  # CuPy was installed meanwhile
    assert measured == [3]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"device": 1}', b"\xff"])
def test_a_file_that_is_no_calibration_is_replaced(tmp_path: FilePath, content: bytes) -> None:
    rates = table(batched=(1, 2)).rates
    calibrate("d", tmp_path, [Path.BATCHED], lambda: rates)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert calibrate("d", tmp_path, [Path.BATCHED], lambda: rates).rates == rates
    assert file.read_bytes() != content


def test_a_folder_that_cannot_be_written_is_no_harm(tmp_path: FilePath) -> None:
    (tmp_path / "file").write_text("")
    rates = table(batched=(1, 2)).rates
    assert calibrate("d", tmp_path / "file", [Path.BATCHED], lambda: rates).rates == rates


def test_a_user_without_a_home_measures_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> FilePath:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(FilePath, "home", homeless)
    rates = table(batched=(1, 2)).rates
    assert user_folder() is None
    assert calibrate("d", user_folder(), FAST, lambda: rates).rates == rates


def test_an_engine_measures_every_way_at_the_sizes_that_its_slots_hold(tmp_path: FilePath) -> None:
    arena, copier = Arena(4, 16 * KIB), RecordingCopier()
    tensors = pages([4096])
    before = tensors[0].clone()
    engine = StreamTransferEngine(arena, {0: tensors}, 4, hardware(copier=copier), cache=tmp_path)
    assert engine.calibration is not None
    measured = {(r.direction, r.path, r.run_nbytes) for r in engine.calibration.rates}
    assert measured == {
        (direction, path, nbytes)
        for direction in Direction
        for path in Path
        for nbytes in (4 * KIB, 16 * KIB)
    }
    assert all(rate.bytes_per_s > 0 for rate in engine.calibration.rates)
    assert torch.equal(tensors[0], before)
    seen = len(copier.calls)
    StreamTransferEngine(arena, {0: tensors}, 4, hardware(copier=copier), cache=tmp_path).close()
    assert len(copier.calls) == seen
    engine.close()
    arena.close()


def test_a_way_that_fails_is_left_out_and_said(
    tmp_path: FilePath, caplog: pytest.LogCaptureFixture
) -> None:
    class WithoutKernel(RecordingCopier):
        def kernel(self, *_: object) -> None:
            raise OSError(209, "CUDA_ERROR_NO_BINARY_FOR_GPU")

    arena, copier = Arena(4, 16 * KIB), WithoutKernel()
    device = hardware(ImmediateStreams(), copier=copier)
    engine = StreamTransferEngine(arena, {0: pages([4096])}, 4, device, cache=tmp_path)
    assert engine.calibration is not None
    measured = {rate.path for rate in engine.calibration.rates}
    assert measured == {Path.BATCHED, Path.PLAIN}
    assert "offload: kernel does not work here: [Errno 209] CUDA_ERROR_NO_BINARY" in caplog.text
    engine.close()
    arena.close()


def test_a_device_without_memory_for_it_starts_unmeasured(
    tmp_path: FilePath, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 64.00 MiB")

    monkeypatch.setattr(calibration, "_trial", full)
    arena, tensors = Arena(4, 16 * KIB), pages([4096])
    device = hardware(ImmediateStreams())
    engine = StreamTransferEngine(arena, {0: tensors}, 4, device, cache=tmp_path)
    assert engine.calibration is not None
    assert engine.calibration.rates == ()
    assert "runs of 4096 bytes are not measured: tried to allocate" in caplog.text
    engine.offload([ChunkCopy(0, 0, (0, 1, 2, 3))]).result()
    engine.close()
    monkeypatch.undo()
    engine = StreamTransferEngine(arena, {0: tensors}, 4, device, cache=tmp_path)
    assert engine.calibration is not None
    assert engine.calibration.rates  # measured at the next start
    engine.close()
    arena.close()


def test_the_way_of_a_size_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arena, looks = Arena(4, 16 * KIB), []
    best = Calibration.best

    def look(self: Calibration, direction: Direction, nbytes: int, paths: Any) -> Path:
        looks.append((direction, nbytes))
        return best(self, direction, nbytes, paths)

    monkeypatch.setattr(Calibration, "best", look)
    engine = StreamTransferEngine(arena, {0: pages([4096])}, 4, hardware())
    for _ in range(10):
        for blocks in ((0, 1, 2, 3), (0, 2, 4, 6)):
            engine.onload([ChunkCopy(0, 0, blocks)]).result()
            engine.offload([ChunkCopy(0, 0, blocks)]).result()
    assert len(looks) == len(set(looks)) == 4
    engine.close()
    arena.close()
