"""The bench runs from end to end on a simulated device: a GPU's time is not for finding its typing errors."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from types import ModuleType

import pytest
import torch

from tests.transfer.simulated import hardware

BENCH = FilePath(__file__).parents[2] / "bench"

Bench = Callable[[str], ModuleType]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(BENCH)
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"bench_{name}", module)
        spec.loader.exec_module(module)
        return module

    return load


def test_a_flag_is_waited_for_or_polled(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    class Device:
        def __init__(self) -> None:
            self.flag = torch.zeros(1, dtype=torch.int32)
            self.held = 0
            self.copies = 0

        def hold(self, value: int) -> None:
            self.held = value

        def copy(self) -> Callable[[], bool]:
            self.copies += 1
            return lambda: int(self.flag[0]) >= self.held

    device = Device()
    bench("flag").run(device, 2)
    assert device.copies == device.flag[0] == 2 * 12
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["unit"] for result in results] == ["us", "us", "ratio"]
    assert all(result["value"] > 0 for result in results)


def test_every_result_is_a_line(
    bench: Bench, tmp_path: FilePath, capsys: pytest.CaptureFixture[str]
) -> None:
    transfer = bench("transfer")
    sizes = transfer.Sizes(
        pages=(4096, 65536),
        sweep=1 << 17,
        contexts=(64,),
        layers=2,
        page_8b=4096,
        matmul=8,
        matmuls=3,
        repeats=1,
    )
    transfer.run(hardware(), sizes, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("# failed")]
    results = [json.loads(line) for line in lines if not line.startswith("#")]
    cases = {result["case"] for result in results if "calibration" not in result["case"]}
    contexts, products, copies = 2 * 5, 4 * 2, 2 + 4 * 2
    assert len(cases) == 2 + contexts + products + copies + 2 * (5 * 2 * 2 + 2)
    assert "onload 4KiB pages, chosen / large copy" in cases
    assert "offload 64KiB pages beside matrix products: these slowed by" in cases
    assert all(result["value"] == result["value"] for result in results)


def test_what_fails_is_a_line_and_the_rest_is_measured(
    bench: Bench, tmp_path: FilePath, capsys: pytest.CaptureFixture[str]
) -> None:
    transfer = bench("transfer")
    sizes = transfer.Sizes(pages=(4096,), sweep=1 << 17, contexts=(64, 0), layers=2, page_8b=4096)
    small = sizes._replace(matmul=8, matmuls=3, repeats=1)
    transfer.run(hardware(), small, tmp_path)
    out = capsys.readouterr().out
    assert out.count("# failed") == 1
    assert "onload 4KiB pages, chosen / large copy" in out
    assert "64 KiB to the device and back, median" in out
