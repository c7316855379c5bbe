"""What it is worth that operations are handed to the I/O process before the forward pass, and not behind it.

One engine of each lane is asked for the same hits in NVMe, in turn with one order and with the other: by itself, where
the steps that wait compute nothing, and beside a request that decodes. Counts of steps bear a busy machine better than
seconds. A hit that does not come from NVMe ends the bench.
The lanes are those of `tests/engine/lanes.py`: where Triton interprets model runner V2, a pass takes long.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from _engine import compute_cpus, dram, nvme, prompts
from _report import machine, report

sys.path.append(str(Path(__file__).parents[1]))
from kvtier.demo.model import LlamaShape, build
from kvtier.demo.server import kv_transfer_config
from tests.engine import faults, inside, lanes

ORDERS = ("before", "behind")
KINDS = ("idle", "busy")
TAIL = 16  # tokens after the hit, always computed


class Took(NamedTuple):
    """What a first token took."""

    seconds: float
    steps: int  # of the engine


def main() -> None:
    """Run a process for each lane."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lanes", nargs="+", default=list(lanes.LANES), choices=lanes.LANES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a hit")
    parser.add_argument("--lane", choices=lanes.LANES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.lane:
        bench_lane(args.lane, args.rounds, args.length)
        return
    machine()
    fixed = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": compute_cpus(),
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    for lane in args.lanes:
        command = [sys.executable, __file__, "--lane", lane]
        command += ["--rounds", str(args.rounds), "--length", str(args.length)]
        subprocess.run(command, check=True, env=os.environ | lanes.environ(lane) | fixed)


def bench_lane(lane: str, rounds: int, length: int) -> None:
    """Measure one lane, in this process."""
    lanes.enter()
    shape = LlamaShape(
        layers=2 if lanes.LANES[lane].v2 else 8,
        hidden=256,
        heads=4,
        kv_heads=2,
        intermediate=512,
        vocab=2048,
    )
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
        build(Path(folder) / "model", shape)
        engine = Engine(Path(folder), length)
        try:
            for kind in KINDS:
                tell(f"{lane}, {kind}, {length} tokens", list(pairs(engine, kind, rounds)))
        finally:
            engine.close()


def pairs(engine: "Engine", kind: str, rounds: int) -> Iterator[dict[str, Took]]:
    """Yield the times of both orders, one after the other, which of them first in turn."""
    for nth in range(rounds + 1):
        order = ORDERS[:: 1 if nth % 2 else -1]
        times = {name: engine.hit(name, busy=kind == "busy") for name in order}
        if nth:  # the first of each kind is slow
            yield times


def tell(case: str, times: list[dict[str, Took]]) -> None:
    """Report the medians, and that of the ratios."""
    for name in ORDERS:
        for unit, place in (("s", 0), ("steps", 1)):
            middle = median(took[name][place] for took in times)
            report("hand_over", f"{case}, {name} the pass", middle, unit)
    ratio = median(took["before"].seconds / took["behind"].seconds for took in times)
    report("hand_over", f"{case}, before by behind", ratio, "times")


class Engine:
    """An engine in this process, and a prompt that it has in NVMe."""

    def __init__(self, folder: Path, length: int) -> None:
        from vllm import LLM

        tiers = [dram("64MiB"), nvme(folder / "kv", "1GiB", write="through", deadline="30s")]
        kvtier = {"load": "always", "chunk_tokens": 128, "tiers": tiers}
        self.llm: Any = LLM(
            model=str(folder / "model"),
            dtype="float32",
            enforce_eager=True,
            max_model_len=length + 512,
            num_gpu_blocks_override=2 * (length // 128) + 16,
            disable_log_stats=False,
            kv_transfer_config=kv_transfer_config(kvtier),
        )
        self._length, self._asked = length, 0
        (self._prompt,) = prompts(1, length + TAIL, seed=1)
        faults.settle(self.llm)
        self._first_token("computed", self._prompt)

    def hit(self, order: str, *, busy: bool) -> Took:
        """Return what the first token of a hit in NVMe takes, perhaps beside a request that decodes."""
        from kvtier.connectors.vllm import rank

        self._cool()
        rank._AHEAD = 64 if order == "before" else 0
        engine, read = self.llm.llm_engine, self._read()
        if busy:
            beside = self._add("beside", prompts(1, 64, seed=self._asked)[0], 400)
            for _ in range(3):
                engine.step()
        took, cached = self._first_token("hit", self._prompt)
        if cached != self._length or self._read() - read != self._length // 128:
            raise RuntimeError(f"{cached} tokens, {self._read() - read} chunks came from NVMe")
        if busy:
            engine.abort_request([beside], internal=True)
        return took

    def close(self) -> None:
        """End its processes."""
        self.llm.llm_engine.engine_core.shutdown()

    def _cool(self) -> None:
        """Leave the prompt in NVMe alone."""
        inside.idle(self.llm)
        assert self.llm.reset_prefix_cache()
        faults.cool(self.llm)
        inside.idle(self.llm)
        assert faults.tier0(self.llm) == 0
        assert self.llm.reset_prefix_cache()
        faults.trust(self.llm)

    def _read(self) -> int:
        return faults.brain_of(self.llm).stats().tiers[1].reads

    def _first_token(self, name: str, prompt: list[int]) -> tuple[Took, int]:
        """Ask for one token: what it took, and how many of the prompt's tokens were not computed."""
        started = time.perf_counter()
        self._add(name, prompt, 1)
        asked = f"{name} {self._asked}"
        for step in itertools.count(1):
            for output in self.llm.llm_engine.step():
                if output.request_id == asked and output.outputs[0].token_ids:
                    took = Took(time.perf_counter() - started, step)
                    return took, output.num_cached_tokens or 0
        raise AssertionError

    def _add(self, name: str, prompt: list[int], tokens: int) -> str:
        """Queue a request, and return the name by which it can be aborted."""
        from vllm import SamplingParams

        self._asked += 1
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        asked: str = self.llm.llm_engine.add_request(
            f"{name} {self._asked}", {"prompt_token_ids": prompt}, params
        )
        return asked


if __name__ == "__main__":
    main()
