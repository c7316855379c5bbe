"""What kvtier costs a workload that it cannot help: unique prompts, prefill and decode, many at once.

Throughput as a share of vLLM alone: all servers are up, one at a time is loaded, each round gives
every server the same work in turn; the median of the rounds' ratios.
"""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from _engine import SHAPE, cpu_s, dram, idle_cores, nvme, server_config, settle, workspace
from _report import machine, report

from kvtier.demo.client import complete
from kvtier.demo.server import Server

ROUNDS = 5
REQUESTS = 24
TARGET = 0.98


class Request(NamedTuple):
    """One prompt and how much is generated after it."""

    prompt: list[int]
    max_tokens: int


class Run(NamedTuple):
    """What a server did with one round's work."""

    tokens_per_s: float
    cpu_s: float  # with what it wrote behind


def work(seed: int) -> list[Request]:
    """Requests of many lengths that share nothing."""
    rng = random.Random(seed)
    return [
        Request(
            [rng.randrange(1, SHAPE.vocab) for _ in range(rng.randint(200, 800))],
            rng.randint(16, 64),
        )
        for _ in range(REQUESTS)
    ]


def load(server: Server, requests: Sequence[Request]) -> Run:
    """Send everything at once and wait for the last token, then for the server to be idle again."""
    cpu, started = cpu_s(server), time.perf_counter()
    with ThreadPoolExecutor(len(requests)) as pool:
        list(pool.map(lambda r: complete(server.port, r.prompt, r.max_tokens), requests))
    seconds = time.perf_counter() - started
    settle(server)
    tokens = sum(len(request.prompt) + request.max_tokens for request in requests)
    return Run(tokens / seconds, cpu_s(server) - cpu)


def main() -> None:
    """Measure and report."""
    machine()
    with workspace() as folder, ExitStack() as stack:
        tiers = {
            "vllm alone": [],
            "dram and nvme": [dram("256MiB"), nvme(folder / "nvme", "2GiB")],
            "dram": [dram("256MiB")],
        }
        servers: dict[str, Server] = {}
        for name, chosen in tiers.items():
            config = server_config(folder, chosen, blocks=160, max_tokens=1024)
            servers[name] = Server(config, folder / f"{name}.log")
            stack.callback(servers[name].close)
        for server in servers.values():
            server.wait_ready()
            load(server, work(0))
        for name, server in servers.items():
            report("overhead", f"idle, {name}", round(idle_cores(server, 3.0), 4), "cores", None)
        measure(servers)


def measure(servers: dict[str, Server]) -> None:
    """Run the rounds; the order turns, so that nobody is always first."""
    runs: dict[str, list[Run]] = {name: [] for name in servers}
    names = list(servers)
    for i in range(ROUNDS):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            runs[name].append(load(servers[name], work(1 + i)))
    alone = runs.pop("vllm alone")
    speed = median(run.tokens_per_s for run in alone)
    report("overhead", "throughput, vllm alone", round(speed), "tokens/s", None)
    for name, ours in runs.items():
        pairs = list(zip(ours, alone, strict=True))
        share = median(mine.tokens_per_s / theirs.tokens_per_s for mine, theirs in pairs)
        cpu = median(mine.cpu_s / theirs.cpu_s for mine, theirs in pairs)
        report("overhead", f"throughput, {name}", round(share, 3), "of vllm alone", TARGET)
        report("overhead", f"CPU time, {name}", round(cpu, 3), "of vllm alone", None)


if __name__ == "__main__":
    main()
