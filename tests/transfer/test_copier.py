"""What the driver is asked for, on torch's current stream."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kvtier.transfer.cuda import CudaCopier
from kvtier.transfer.driver import CudaDriver
from kvtier.transfer.paths import Direction

STREAM = 4711


def test_sources_of_loads_may_be_read_early_and_those_of_stores_may_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, bool]] = []

    class Driver(CudaDriver):
        def __init__(self) -> None: ...

        def copy(self, *_: object, any_order: bool) -> None:
            calls.append((int(_[3]), any_order))  # type: ignore[call-overload]

    current = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    engine = CudaCopier(Driver(), torch.device("cpu"), None)
    one = np.ones(1, np.uint64)
    for direction in Direction:
        engine.copy(one, one, one, direction)
    assert calls == [(STREAM, False), (STREAM, True)]
