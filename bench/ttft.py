"""Time to the first token of a hit in DRAM and in NVMe, against computing the same prompt.

Every prompt is computed once, then served from DRAM with the device's own prefix cache emptied, then,
by a server that has just started, from NVMe with the page cache dropped. A hit that is none ends the bench.
"""

import os
from pathlib import Path
from statistics import median

from _engine import (
    dram,
    forget_device_cache,
    nvme,
    prompts,
    server_config,
    settle,
    sources,
    workspace,
)
from _report import machine, report

from kvtier.demo.client import complete
from kvtier.demo.server import Server, ServerConfig, serving

LENGTHS = (1024, 2048, 4096, 8192)
SAMPLES = 3
TAIL = 16  # tokens after the hit, always computed
TARGETS = {"dram": 5.0, "nvme": 3.0}

Prompts = dict[int, list[list[int]]]
Times = dict[int, list[float]]


def main() -> None:
    """Measure and report."""
    machine()
    with workspace() as folder:
        tiers = [dram("1GiB"), nvme(folder / "nvme", "4GiB")]
        config = server_config(folder, tiers, blocks=160, max_tokens=max(LENGTHS) + 2 * TAIL)
        asked = {n: prompts(SAMPLES, n + TAIL, seed=n) for n in LENGTHS}
        computed, hits = warm_run(config, folder, asked)
        drop_page_cache(folder / "nvme")
        for tier, times in {"dram": hits, "nvme": cold_run(config, folder, asked)}.items():
            for n in LENGTHS:
                recompute, hit = median(computed[n]), median(times[n])
                report("ttft", f"{tier}, {n} tokens", hit, "s")
                share = round(recompute / hit, 2)
                report("ttft", f"{tier}, {n} tokens, speedup", share, "times", TARGETS[tier])
        for n in LENGTHS:
            report("ttft", f"recompute, {n} tokens", median(computed[n]), "s")


def warm_run(config: ServerConfig, folder: Path, asked: Prompts) -> tuple[Times, Times]:
    """Compute every prompt, and serve it from DRAM."""
    computed: Times = {n: [] for n in asked}
    hits: Times = {n: [] for n in asked}
    with serving(config, folder / "first.log") as server:
        warm_up(server)
        for n, each in asked.items():
            for prompt in each:
                computed[n].append(timed(server, prompt, computed=len(prompt)))
                settle(server)
                forget_device_cache(server)
                hits[n].append(timed(server, prompt, computed=TAIL, dram=n))
        settle(server)
    return computed, hits


def cold_run(config: ServerConfig, folder: Path, asked: Prompts) -> Times:
    """Serve every prompt from NVMe: a new server has nothing in DRAM."""
    hits: Times = {n: [] for n in asked}
    with serving(config, folder / "second.log") as server:
        warm_up(server)
        for n, each in asked.items():
            hits[n] = [timed(server, prompt, computed=TAIL, nvme=n) for prompt in each]
    return hits


def warm_up(server: Server) -> None:
    """Pay for what the first of each kind costs: computing, loading, and reading where that can be."""
    prompt = prompts(1, 1024 + TAIL, seed=0)[0]
    for _ in range(2):
        complete(server.port, prompt, 1)
        settle(server)
        forget_device_cache(server)


def timed(
    server: Server, prompt: list[int], *, computed: int, dram: int = 0, nvme: int = 0
) -> float:
    """Time to the first token of a prompt that must be served exactly so."""
    before = sources(server)
    answer = complete(server.port, prompt, 1)
    after = sources(server)
    got = (after.computed - before.computed, after.dram - before.dram, after.nvme - before.nvme)
    if got != (computed, dram, nvme) or answer.cached != dram + nvme:
        raise RuntimeError(
            f"{len(prompt)} tokens: computed {got[0]}, DRAM {got[1]}, NVMe {got[2]}; "
            f"expected {computed}, {dram}, {nvme}"
        )
    return answer.ttft_s


def drop_page_cache(path: Path) -> None:
    """Write back and forget what the kernel caches of the files below `path`."""
    os.sync()
    for file in path.rglob("*.kvt"):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


if __name__ == "__main__":
    main()
