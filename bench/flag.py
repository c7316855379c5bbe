"""How soon a chunk is on the device after it is in its slot: a stream that waits for a flag in pinned memory, so that
nobody needs to poll, against a caller that sees the flag and submits the copy then. The first is not in kvtier.
"""

import ctypes
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import _report
import torch

from kvtier.transfer.driver import CudaDriver

NBYTES = 2 << 20
ROUNDS = 200
_GEQ = 0  # CU_STREAM_WAIT_VALUE_GEQ


class Device(ABC):
    """One slot, one flag, one stream."""

    flag: torch.Tensor  # (1,), int32, pinned

    @abstractmethod
    def hold(self, value: int) -> None:
        """Keep what the stream is given from now on until the flag has reached `value`."""

    @abstractmethod
    def copy(self) -> Callable[[], bool]:
        """Give the stream the copy of the slot; return what says whether it is over."""


class CudaDevice(Device):
    """The real one."""

    def __init__(self) -> None:
        self.flag = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        self._slot = torch.zeros(NBYTES, dtype=torch.int8, pin_memory=True)
        self._page = torch.empty(NBYTES, dtype=torch.int8, device="cuda")
        self._driver = CudaDriver()
        self._stream = torch.cuda.Stream()

    def hold(self, value: int) -> None:
        self._driver._call(
            "cuStreamWaitValue32_v2",
            ctypes.c_void_p(self._stream.cuda_stream),
            ctypes.c_uint64(self.flag.data_ptr()),
            ctypes.c_uint32(value),
            ctypes.c_uint(_GEQ),
        )

    def copy(self) -> Callable[[], bool]:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            self._page.copy_(self._slot, non_blocking=True)
            event.record(self._stream)  # type: ignore[no-untyped-call]
        return event.query  # type: ignore[no-any-return]


def main() -> None:
    """Measure both."""
    _report.machine()
    if not torch.cuda.is_available():
        print("bench/flag.py needs a CUDA device; there is none here", file=sys.stderr)
        return
    print(f"# {torch.cuda.get_device_name()}", flush=True)
    run(CudaDevice(), ROUNDS)


def run(device: Device, rounds: int) -> None:
    """Alternate both ways, the first rounds not counted."""
    times: dict[str, list[float]] = {"a stream waits": [], "the caller polls": []}
    for i in range(rounds + 10):
        for way, seconds in times.items():
            value = int(device.flag[0]) + 1
            over = None
            if way == "a stream waits":
                device.hold(value)
                over = device.copy()
                time.sleep(0.0005)  # the stream gets there
            started = time.perf_counter()
            device.flag[0] = value
            over = over or device.copy()
            while not over():
                pass
            if i >= 10:
                seconds.append(time.perf_counter() - started)
    for way, seconds in times.items():
        _report.report("flag", f"{way}, 2MiB", statistics.median(seconds) * 1e6, "us")
    waits, polls = (statistics.median(seconds) for seconds in times.values())
    _report.report("flag", "a stream waits by the caller polls", waits / polls, "ratio")


if __name__ == "__main__":
    main()
