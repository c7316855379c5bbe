"""Who waits while one request reads from a slow disk: it alone should.

Each read of the disk takes 2 s; then again, just after it was fast; then all of a hit is fast but for its last chunk,
which hangs. While a long prompt is read, others ask: some share nothing with it,
some its first chunks, which are in the device's cache or in DRAM. Their time to the first token, as a
multiple of the same without the read.
"""

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median

from _engine import (
    CHUNK,
    SHAPE,
    dram,
    forget_device_cache,
    nvme,
    prompts,
    server_config,
    settle,
    workspace,
)
from _report import machine, report

from kvtier.demo.client import Completion, complete
from kvtier.demo.server import Server, serving

READ_S = 2.0
SHARED = 4 * CHUNK
HELD = 24 * CHUNK  # read in turns of as many chunks as there are I/O threads: 8
CALM_S = 5.0
TARGET = 1.5

Times = dict[str, list[float]]


def main() -> None:
    """Measure and report."""
    machine()
    with workspace() as folder:
        control, tier = folder / "control.json", folder / "nvme"
        slow = nvme(
            tier,
            "2GiB",
            deadline="20s",
            wrappers=[{"kind": "faulty", "control": str(control)}],
        )
        config = server_config(
            folder, [dram("512MiB"), slow], blocks=160, max_tokens=4096, load="always"
        )
        held = prompts(4, SHARED + HELD + 16, seed=1)
        last = []
        with serving(config, folder / "before.log") as server:
            for prompt in held:
                complete(server.port, prompt, 1)
                settle(server)
                last.append(max(tier.rglob("*.kvt"), key=lambda path: path.stat().st_mtime_ns).stem)
        delayed = {"read_delay_s": READ_S}
        with serving(config, folder / "after.log") as server:
            answer = measure(server, held[0], "a slow disk", control, delayed)
            if answer.ttft_s < READ_S:
                raise RuntimeError(f"not held: {answer.ttft_s:.2f} s")
            complete(server.port, held[1], 1)
            measure(server, held[2], "a disk that was fast before", control, delayed)
            # all lands but the last chunk: its load may have begun
            hangs = {"hang": True, "key": last[3]}
            measure(server, held[3], "a disk that stalls at the end", control, hangs)


def measure(
    server: Server, held: list[int], scene: str, control: Path, faults: dict[str, object]
) -> Completion:
    """Probe in peace, then while `held` is read, then in peace again."""
    control.write_text("{}")
    probe = Probe(server, held[:SHARED])
    complete(server.port, held[: SHARED + 16], 1)  # its first chunks come up while the disk is fast
    probe.run(lambda: probe.rounds >= 3)  # what comes first is slow
    control.write_text(json.dumps(faults))
    calm, waiting = probe.rest(), Times()
    with ThreadPoolExecutor(1) as pool:
        future: Future[Completion] = pool.submit(complete, server.port, held, 1)
        waiting = probe.run(future.done)
        answer = future.result()
    if answer.cached < SHARED + HELD - CHUNK:  # the last one may hang
        raise RuntimeError(f"not held: {answer.cached} tokens after {answer.ttft_s:.2f} s")
    for kind, times in probe.rest().items():
        calm[kind] += times
    control.write_text("{}")
    report("hold", f"{scene}: the request that reads", answer.ttft_s, "s")
    for kind, times in waiting.items():
        report("hold", f"{scene}: {kind}, nobody reads", median(calm[kind]), "s")
        if not times:  # it was over too soon to hold anybody
            continue
        report("hold", f"{scene}: {kind}, while it reads", median(times), "s")
        ratio = round(median(times) / median(calm[kind]), 2)
        report("hold", f"{scene}: {kind}, slowdown", ratio, "times", TARGET)
    return answer


class Probe:
    """Asks short questions of three kinds in turn and notes how long each waits for its first token."""

    def __init__(self, server: Server, shared: list[int]) -> None:
        self.rounds = 0
        self._server = server
        self._shared = shared
        self._rng = random.Random(0)

    def rest(self) -> Times:
        """Ask for a while in which nothing else happens."""
        until = time.monotonic() + CALM_S
        return self.run(lambda: time.monotonic() >= until)

    def run(self, over: Callable[[], bool]) -> Times:
        """Ask until `over`; a round during which it came true does not count."""
        times: Times = {"unrelated": [], "shares, on the device": [], "shares, in DRAM": []}
        self.rounds = 0
        while True:
            took = (self._ask([], 2 * CHUNK), self._ask(self._shared, CHUNK), self._from_dram())
            if over():
                return times
            self.rounds += 1
            for noted, seconds in zip(times.values(), took, strict=True):
                noted.append(seconds)

    def _from_dram(self) -> float:
        forget_device_cache(self._server)
        return self._ask(self._shared, CHUNK)

    def _ask(self, prefix: list[int], fresh: int) -> float:
        tail = [self._rng.randrange(1, SHAPE.vocab) for _ in range(fresh)]
        answer = complete(self._server.port, prefix + tail, 1)
        if answer.cached != len(prefix):
            raise RuntimeError(f"{answer.cached} tokens were cached, not {len(prefix)}")
        return answer.ttft_s


if __name__ == "__main__":
    main()
