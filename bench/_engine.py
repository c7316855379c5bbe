"""What the benches on the real engine share: a model, servers, prompts, and what a server does.

Everything they make is below one temporary directory, and every server ends with the bench.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kvtier.demo import client, watch
from kvtier.demo.model import LlamaShape, build
from kvtier.demo.process import session
from kvtier.demo.results import Sources
from kvtier.demo.server import Server, ServerConfig

SHAPE = LlamaShape(layers=8, hidden=512, heads=8, kv_heads=4, intermediate=1024, vocab=2048)
"""16 KiB of KV per token."""

CHUNK = 128  # tokens: one block, 2 MiB
QUIET = 0.03  # cores; what an idle server stays below
SETTLE_S = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def workspace() -> Iterator[Path]:
    """Make a directory with the model in `model`; it goes away with the bench, also on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
        build(Path(folder) / "model", SHAPE)
        yield Path(folder)


def server_config(
    folder: Path,
    tiers: Sequence[Mapping[str, object]],
    *,
    blocks: int,
    max_tokens: int,
    **more: object,
) -> ServerConfig:
    """A server with these tiers, or vLLM alone where there are none; `more` is kvtier's configuration."""
    return ServerConfig(
        model=folder / "model",
        blocks=blocks,
        max_tokens=max_tokens,
        kvtier={"chunk_tokens": CHUNK, "tiers": list(tiers), **more} if tiers else None,
        env={
            "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
            "VLLM_CPU_OMP_THREADS_BIND": compute_cpus(),
        },
    )


def compute_cpus() -> str:
    """Name the CPUs that every server computes on: all but two, the first where there are no more.

    Left to itself vLLM reserves one CPU, and two with a connector; where there are only two it then
    reserves none. Engines with and without a connector would compute on different numbers of CPUs.
    """
    cpus = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, cpus[: max(1, len(cpus) - 2)]))


def dram(capacity: str) -> dict[str, object]:
    """The first tier."""
    return {"name": "dram", "kind": "dram", "capacity": capacity}


def nvme(path: Path, capacity: str, **more: object) -> dict[str, object]:
    """A file tier with the defaults of the product, unless `more` says otherwise."""
    return {"name": "nvme", "kind": "file", "path": str(path), "capacity": capacity, **more}


def prompts(count: int, tokens: int, *, seed: int) -> list[list[int]]:
    """Random prompts that have nothing in common."""
    rng = random.Random(seed)
    return [[rng.randrange(1, SHAPE.vocab) for _ in range(tokens)] for _ in range(count)]


def forget_device_cache(server: Server) -> None:
    """Drop vLLM's own prefix cache; kvtier's tiers stay as they are."""
    with client.connect(server.port) as http:
        http.post("/reset_prefix_cache")


def sources(server: Server) -> Sources:
    """Where the prompts' tokens came from since the server started, by vLLM's own counters."""
    return watch.sources(watch.parse(client.metrics(server.port)))


def counter(server: Server, name: str, tier: str = "") -> int:
    """One of our counters; 0 while it has not counted."""
    return int(watch.parse(client.metrics(server.port)).get((f"kvtier:{name}_total", tier), 0))


def cpu_s(server: Server) -> float:
    """CPU time that the server's processes have used so far."""
    ticks = 0
    for pid in session(server.process.pid):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def idle_cores(server: Server, seconds: float = 0.5) -> float:
    """Cores that the server keeps busy now."""
    before, started = cpu_s(server), time.perf_counter()
    time.sleep(seconds)
    return (cpu_s(server) - before) / (time.perf_counter() - started)


def settle(server: Server) -> None:
    """Wait until the server does nothing any more: what it writes behind is written."""
    deadline = time.monotonic() + SETTLE_S
    while idle_cores(server) > QUIET:
        if time.monotonic() > deadline:
            raise RuntimeError(f"a server is still busy after {SETTLE_S:.0f} s without requests")
