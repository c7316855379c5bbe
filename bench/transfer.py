"""Copies between device pages and the arena, against one large pinned copy of the same run, in GB/s (1e9 bytes).

Pages are scattered at random and padded apart, so that no two make one run. `chosen` is what the engine does by itself;
the other names are its ways one by one. Times are from the submission to the end of the copy, on the host's clock. What
fails is a line, and the next part goes on; the headlines come first.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import NamedTuple

import _report
import numpy as np
import torch

from kvtier.memory.arena import Arena
from kvtier.transfer.cuda import find
from kvtier.transfer.engine import ChunkCopy, Transfer
from kvtier.transfer.hardware import Hardware
from kvtier.transfer.paths import Direction, Path
from kvtier.transfer.stream_engine import StreamTransferEngine
from kvtier.transfer.streams import COMPUTE
from kvtier.units import format_nbytes

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGES = tuple(KIB << i for i in range(2, 12))
LAYERS, PAGE_8B, BLOCK_TOKENS = 32, 64 * KIB, 16
"""Llama-3-8B in bf16: 16 tokens x 8 heads x 128 x K and V x 2 bytes are a page of a layer."""


class Sizes(NamedTuple):
    """How much is measured."""

    pages: Sequence[int] = PAGES
    sweep: int = GIB  # bytes per measurement of a page size
    contexts: Sequence[int] = (8 * KIB, 32 * KIB, 128 * KIB)  # tokens
    layers: int = LAYERS  # tensors that a chunk's pages are in
    page_8b: int = PAGE_8B
    matmul: int = 8192
    matmuls: int = 300
    repeats: int = 5

    def per_chunk(self, nbytes: int) -> int:
        """Blocks of a chunk of about 2 MiB whose pages are of that size."""
        return max(1, min(self.sweep, 2 * MIB) // (self.layers * nbytes))


class Link(NamedTuple):
    """GB/s of one large pinned copy."""

    offload: float
    onload: float

    def of(self, direction: Direction) -> float:
        """Choose one."""
        return self.offload if direction is Direction.OFFLOAD else self.onload


class Rig(NamedTuple):
    """An engine, and copies that go through every page once, in random order."""

    engine: StreamTransferEngine
    copies: list[ChunkCopy]

    def start(self, direction: Direction, half: slice = slice(None)) -> Transfer:
        """Submit the copies, or some of them."""
        go = self.engine.offload if direction is Direction.OFFLOAD else self.engine.onload
        return go(self.copies[half])


def main() -> None:
    """Measure everything and print a line per result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes: a first look in seconds")
    arguments = parser.parse_args()
    _report.machine()
    if not torch.cuda.is_available():
        print("bench/transfer.py needs a CUDA device; there is none here", file=sys.stderr)
        return
    print(gpu(), flush=True)
    sizes = Sizes()
    if arguments.quick:
        sizes = sizes._replace(
            pages=(4 * KIB, 16 * KIB, 64 * KIB), contexts=(8 * KIB, 128 * KIB), repeats=3
        )
    with tempfile.TemporaryDirectory() as cache:
        run(find(torch.device("cuda", 0)), sizes, FilePath(cache))


def gpu() -> str:
    """Name the device, its driver and its link, as one JSON-like line of nvidia-smi's."""
    fields = "name,driver_version,pcie.link.gen.current,pcie.link.gen.max,pcie.link.width.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "\n".join(f"# {line}" for line in done.stdout.splitlines())


def run(hardware: Hardware, sizes: Sizes, cache: FilePath) -> None:
    """Measure the link, the page sizes, the contexts, and the transfers beside matrix products."""
    link = measure_link(hardware, sizes)
    for direction, speed in zip(Direction, link, strict=True):
        report(f"{direction} one large pinned copy", speed, "GB/s")
    attempt(lambda: print_calibration(hardware, sizes, cache))
    for tokens in sizes.contexts:
        attempt(lambda n=tokens: context(hardware, sizes, n, link, cache))  # type: ignore[misc]
    attempt(lambda: beside_products(hardware, sizes, link, cache))
    attempt(lambda: beside_copies(hardware, sizes, cache))
    for nbytes in sizes.pages:
        for path in (None, *hardware.paths(pinned=True)):
            attempt(lambda n=nbytes, p=path: sweep(hardware, sizes, n, p, link, cache))  # type: ignore[misc]


def attempt(part: Callable[[], None]) -> None:
    """Measure a part; say what went wrong and go on: a device's time is short."""
    try:
        part()
    except Exception as exc:
        print(f"# failed: {exc!r}", flush=True)
        traceback.print_exc()


def print_calibration(hardware: Hardware, sizes: Sizes, cache: FilePath) -> None:
    """Say which ways there are, and what the engine measured of them: by that it chooses."""
    with rig(hardware, (sizes.layers, sizes.page_8b, 1, 64), None, cache) as found:
        print(f"# ways: {', '.join(found.engine.paths)}", flush=True)
        calibration = found.engine.calibration
        for rate in calibration.rates if calibration else ():
            runs = format_nbytes(rate.run_nbytes)
            name = f"calibration: {rate.direction} runs of {runs}, {rate.path}"
            report(name, rate.bytes_per_s / 1e9, "GB/s")


def measure_link(hardware: Hardware, sizes: Sizes) -> Link:
    """Copy one pinned buffer as a whole."""
    pinned = hardware.device.type != "cpu"
    here = torch.randint(0, 127, (sizes.sweep,), dtype=torch.int8)
    here = here.pin_memory() if pinned else here
    there = torch.empty(sizes.sweep, dtype=torch.int8, device=hardware.device)
    stream = hardware.streams.open()

    def copy(dst: torch.Tensor, src: torch.Tensor) -> None:
        def move() -> None:
            dst.copy_(src, non_blocking=True)

        hardware.streams.run(stream, move)
        hardware.streams.mark(stream).wait()

    seconds = [
        timed(lambda: copy(here, there), sizes.repeats),
        timed(lambda: copy(there, here), sizes.repeats),
    ]
    return Link(*(sizes.sweep / each / 1e9 for each in seconds))


def sweep(
    hardware: Hardware, sizes: Sizes, nbytes: int, path: Path | None, link: Link, cache: FilePath
) -> None:
    """Measure one page size one way; the chosen one in both directions at once too."""
    per_chunk = sizes.per_chunk(nbytes)
    chunks = max(2, sizes.sweep // (sizes.layers * nbytes * per_chunk))
    with rig(hardware, (sizes.layers, nbytes, per_chunk, chunks), path, cache) as found:
        for direction, large in zip(Direction, link, strict=True):
            seconds = timed(lambda d=direction: found.start(d).result(), sizes.repeats)  # type: ignore[misc]
            name = f"{direction} {format_nbytes(nbytes)} pages, {path or 'chosen'}"
            report_speed(name, found, seconds, large, target(nbytes) if path is None else None)
        if path is None:
            both(found, sizes, nbytes, link)


def both(found: Rig, sizes: Sizes, nbytes: int, link: Link) -> None:
    """Run both directions at the same time, each over its half of the pages."""
    half = len(found.copies) // 2
    halves = {Direction.OFFLOAD: slice(0, half), Direction.ONLOAD: slice(half, None)}

    def together() -> None:
        for transfer in [found.start(direction, part) for direction, part in halves.items()]:
            transfer.result()

    seconds = timed(together, sizes.repeats)
    name = f"both at once, {format_nbytes(nbytes)} pages, chosen, sum"
    report_speed(name, found, seconds, sum(link), None)


def context(hardware: Hardware, sizes: Sizes, tokens: int, link: Link, cache: FilePath) -> None:
    """Move one context of an 8B model; say how long the caller's thread was busy with the submission, also with one
    that the device cannot begin: a driver whose queue is full lets the caller wait.
    """
    shape = (sizes.layers, sizes.page_8b, 1, tokens // BLOCK_TOKENS)
    with rig(hardware, shape, None, cache) as found:
        for direction, large in zip(Direction, link, strict=True):
            submit: list[float] = []

            def once(direction: Direction = direction, submit: list[float] = submit) -> None:
                started = time.perf_counter()
                transfer = found.start(direction)
                submit.append(time.perf_counter() - started)
                transfer.result()

            seconds = timed(once, max(3, sizes.repeats - 2))
            name = f"{direction} {tokens // KIB}k tokens of an 8B model"
            report_speed(name, found, seconds, large, 0.95)
            report(f"{name}, seconds", seconds, "s")
            report(f"{name}, submission", statistics.median(submit) * 1e3, "ms")
            submit.clear()
            for _ in range(3):
                hold_up(hardware)
                once()
            report(f"{name}, submission behind a pass", statistics.median(submit) * 1e3, "ms")


def hold_up(hardware: Hardware) -> None:
    """Give the device something that takes it about a quarter of a second, as a long forward pass does."""
    if hardware.device.type == "cuda":
        torch.cuda._sleep(400_000_000)  # type: ignore[no-untyped-call] # torch has no types for it


class Flow:
    """Transfers of one direction, three under way whenever somebody looks."""

    def __init__(self, found: Rig, direction: Direction) -> None:
        self.direction = direction
        self.nbytes = 0  # moved so far
        self._found = found
        self._flying: list[Transfer] = []

    def feed(self) -> None:
        """Look."""
        while self._flying and self._flying[0].done():
            self.nbytes += self._flying.pop(0).result().nbytes
        while len(self._flying) < 3:
            self._flying.append(self._found.start(self.direction))


def flows(hardware: Hardware, sizes: Sizes, cache: FilePath) -> Iterator[tuple[str, Flow]]:
    """Make a flow per page size and direction, with its name."""
    for nbytes in (page for page in (4 * KIB, 16 * KIB, 64 * KIB) if page in sizes.pages):
        shape = (sizes.layers, nbytes, sizes.per_chunk(nbytes), 32)
        with rig(hardware, shape, None, cache) as found:
            for direction in Direction:
                name = f"{direction} {format_nbytes(nbytes)} pages beside"
                yield name, Flow(found, direction)


def stream_behind(hardware: Hardware) -> int:
    """Make a stream that comes after what the device was given until now."""
    stream = hardware.streams.open()
    hardware.streams.after(stream, hardware.streams.mark(COMPUTE))
    return stream


def beside_products(hardware: Hardware, sizes: Sizes, link: Link, cache: FilePath) -> None:
    """Measure matrix products alone and beside transfers, and the transfers beside them."""
    n = sizes.matmul
    dtype = torch.bfloat16 if hardware.device.type != "cpu" else torch.float32
    a, b = (torch.randn((n, n), dtype=dtype, device=hardware.device) for _ in range(2))
    out, stream = torch.empty_like(a), stream_behind(hardware)

    def product() -> None:
        torch.mm(a, b, out=out)

    def products(meanwhile: Callable[[], None]) -> None:
        for _ in range(sizes.matmuls):
            hardware.streams.run(stream, product)
        end = hardware.streams.mark(stream)
        while not end.passed():
            meanwhile()

    alone = timed(lambda: products(lambda: None), sizes.repeats)
    for name, flow in flows(hardware, sizes, cache):
        busy = timed(lambda f=flow: products(f.feed), sizes.repeats)  # type: ignore[misc]
        speed = flow.nbytes / (busy * (sizes.repeats + 1)) / 1e9
        large = link.of(flow.direction)
        report(f"{name} matrix products / large copy", speed / large, "ratio")
        report(f"{name} matrix products: these slowed by", busy / alone - 1, "ratio", 0.03)


def beside_copies(hardware: Hardware, sizes: Sizes, cache: FilePath) -> None:
    """Measure a step's small copies alone and beside transfers: its input and its sampled tokens share the copy engines."""
    there = torch.zeros(64 * KIB, dtype=torch.int8, device=hardware.device)
    here = there.cpu() if hardware.device.type == "cpu" else there.cpu().pin_memory()
    stream = stream_behind(hardware)

    def exchange() -> None:
        there.copy_(here, non_blocking=True)
        here.copy_(there, non_blocking=True)

    def exchanges(name: str, meanwhile: Callable[[], None]) -> None:
        seconds = []
        for _ in range(sizes.matmuls):
            meanwhile()
            started = time.perf_counter()
            hardware.streams.run(stream, exchange)
            hardware.streams.mark(stream).wait()
            seconds.append(time.perf_counter() - started)
        report(f"{name}, median", statistics.median(seconds) * 1e3, "ms")
        report(f"{name}, worst", max(seconds) * 1e3, "ms")

    exchanges("64 KiB to the device and back", lambda: None)
    for name, flow in flows(hardware, sizes, cache):
        exchanges(f"{name} 64 KiB to the device and back", flow.feed)


@contextmanager
def rig(
    hardware: Hardware, shape: tuple[int, int, int, int], path: Path | None, cache: FilePath
) -> Iterator[Rig]:
    """Make pages (layers, bytes each, blocks per chunk, chunks) and an engine over them, free to choose where `path` is None."""
    layers, nbytes, per_chunk, chunks = shape
    blocks = per_chunk * chunks
    pages = [
        torch.randint(0, 127, (blocks, nbytes + 512), dtype=torch.int8, device=hardware.device)
        for _ in range(layers)
    ]
    arena = Arena(chunks, -(-layers * nbytes * per_chunk // 4096) * 4096)
    engine = StreamTransferEngine(
        arena,
        {0: [tensor[:, :nbytes] for tensor in pages]},
        per_chunk,
        hardware,
        paths=[path] if path else tuple(Path),
        cache=cache,
    )
    order = np.random.default_rng(0).permutation(blocks).reshape(chunks, per_chunk)
    copies = [ChunkCopy(i, 0, tuple(row)) for i, row in enumerate(order.tolist())]
    try:
        yield Rig(engine, copies)
    finally:
        engine.close()
        arena.close()


def timed(work: Callable[[], object], repeats: int) -> float:
    """Return the median of the seconds that it takes, after one call that is not counted."""
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def target(nbytes: int) -> float:
    """Say how near to the large copy pages of that size should come."""
    return 0.95 if nbytes >= 16 * KIB else 0.85


def report_speed(name: str, found: Rig, seconds: float, large: float, goal: float | None) -> None:
    """Print the speed and its ratio to the large copy."""
    arena = found.engine.arena
    speed = arena.nbytes / seconds / 1e9
    report(name, speed, "GB/s")
    report(f"{name} / large copy", speed / large, "ratio", goal)


def report(case: str, value: float, unit: str, goal: float | None = None) -> None:
    """Print one result of this bench."""
    _report.report("transfer", case, value, unit, goal)


if __name__ == "__main__":
    main()
