"""The bench runs from end to end on a simulated device: a GPU's time is not for finding its typing errors."""

import importlib.util
import json
import sys
from pathlib import Path as FilePath
from types import ModuleType

import pytest

from tests.transfer.simulated import hardware

BENCH = FilePath(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    spec = importlib.util.spec_from_file_location("bench_transfer", BENCH / "transfer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_transfer", module)
    spec.loader.exec_module(module)
    return module


def test_every_result_is_a_line(
    bench: ModuleType, tmp_path: FilePath, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = bench.Sizes(
        pages=(4096, 65536),
        sweep=1 << 17,
        contexts=(64,),
        layers=2,
        page_8b=4096,
        matmul=8,
        matmuls=3,
        repeats=1,
    )
    bench.run(hardware(), sizes, tmp_path)
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    cases = {result["case"] for result in results}
    assert len(cases) == len(results) == 2 + 2 * (5 * 2 * 2 + 2) + 2 * 4 + 2 * 2 * 2
    assert "onload 4KiB pages, chosen / large copy" in cases
    assert "offload 64KiB pages beside matrix products: products slowed by" in cases
    assert all(result["value"] == result["value"] for result in results)
