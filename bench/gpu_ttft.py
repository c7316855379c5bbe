"""Time to the first token on a GPU: computing it, a hit by vLLM's own OffloadingConnector, a hit by kvtier.

One engine after the other, of an 8B model with dummy weights: nothing is downloaded. Each prompt is computed once, then
asked for again with the device's own prefix cache emptied; a hit that is none ends that engine's part. Engines run
eagerly. `--small` is a tiny model on whatever device there is, the CPU included, where vLLM's own connector does not work.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from _engine import compute_cpus
from _report import machine, report

from kvtier.demo.model import LlamaShape
from kvtier.demo.process import end_session
from kvtier.demo.server import kv_transfer_config
from kvtier.units import parse_count

LLAMA_8B = LlamaShape(
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=14336,
    vocab=128256,
    positions=1 << 18,
)
SMALL = LlamaShape(layers=8, hidden=512, heads=8, kv_heads=4, intermediate=1024, vocab=2048)
ENGINES = ("alone", "vllm", "kvtier")
TAIL = 16  # tokens of a prompt that no chunk holds
TIMEOUT_S = 300.0  # of one engine


class Case(NamedTuple):
    """What every engine is asked."""

    shape: LlamaShape
    dtype: str
    lengths: tuple[int, ...]
    samples: int
    dram_nbytes: int


def transfer(name: str, dram_nbytes: int) -> dict[str, object] | None:
    """Configure one engine's connector."""
    if name == "kvtier":
        return kv_transfer_config({"tiers": [{"kind": "dram", "capacity": dram_nbytes}]})
    if name == "vllm":
        return {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"cpu_bytes_to_use": dram_nbytes},
        }
    return None


def main() -> None:
    """Run every engine, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="8Ki,32Ki,64Ki,128Ki", help="tokens of the prompts")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--dram", type=int, default=40, help="GiB of each connector")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    lengths = tuple(map(parse_count, arguments.lengths.split(",")))
    case = Case(LLAMA_8B, "bfloat16", lengths, arguments.samples, arguments.dram << 30)
    if arguments.small:
        case = Case(SMALL, "float32", (1024, 2048), arguments.samples, 1 << 30)
    if arguments.engine:
        arguments.result.write_text(json.dumps(measure(arguments.engine, case)))
        return
    machine()
    if not (arguments.small or torch.cuda.is_available()):
        print(
            "bench/gpu_ttft.py needs a CUDA device, or --small; there is none here", file=sys.stderr
        )
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the engine ends with us
    found = {name: run(name, sys.argv[1:]) for name in ENGINES}
    for name, times in found.items():
        for case_name, seconds in times.items():
            report("gpu_ttft", f"{name}, {case_name}", median(seconds), "s")
    for n in case.lengths:
        compare(found, f"{n} tokens")


def compare(found: dict[str, dict[str, list[float]]], n: str) -> None:
    """Report the ratios of one length."""
    if ours := found["kvtier"].get(f"{n}, hit"):
        if computed := found["alone"].get(f"{n}, computed"):
            speedup = median(computed) / median(ours)
            report("gpu_ttft", f"{n}, computed by a hit of kvtier", speedup, "times", 5.0)
            beside = median(found["kvtier"][f"{n}, computed"]) / median(computed)
            report("gpu_ttft", f"{n}, computed with kvtier by without", beside, "times", 1.02)
        if theirs := found["vllm"].get(f"{n}, hit"):
            ratio = median(ours) / median(theirs)
            report("gpu_ttft", f"{n}, a hit of kvtier by one of vLLM's", ratio, "times", 1.0)


def run(name: str, arguments: Sequence[str]) -> dict[str, list[float]]:
    """Run one engine in a process of its own; what it could not do is said, and is no result."""
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": compute_cpus(),
        **os.environ,
    }
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [sys.executable, __file__, *arguments, "--engine", name, "--result", str(result)]
        with log.open("wb") as out:
            engine = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        try:
            engine.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print(f"# {name}: not over after {TIMEOUT_S:.0f} s", flush=True)
        finally:
            end_session(engine, 10.0)
        if not result.exists():
            lines = [line for line in log.read_text().splitlines() if "Error" in line]
            print("\n".join(f"# {name}: {line.strip()}" for line in lines[-3:]), flush=True)
            return {}
        times: dict[str, list[float]] = json.loads(result.read_text())
        return times


def measure(name: str, case: Case) -> dict[str, list[float]]:
    """Time every prompt with one engine."""
    from vllm import LLM

    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(case.shape.config()))
        arguments: dict[str, Any] = {
            "model": folder,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": case.dtype,
            "enforce_eager": True,
            "max_model_len": max(case.lengths) + 2 * TAIL,
            "disable_log_stats": False,
            "kv_transfer_config": transfer(name, case.dram_nbytes),
        }
        llm = LLM(**arguments)
        times: dict[str, list[float]] = {}
        draw = random.Random(0)
        ask(llm, prompt(draw, case, 1024))  # compiles what is compiled at the first call
        for n in case.lengths:
            computed, hits = f"{n} tokens, computed", f"{n} tokens, hit"
            for _ in range(case.samples):
                asked = prompt(draw, case, n)
                times.setdefault(computed, []).append(ask(llm, asked))
                if name != "alone":
                    settle(llm, prompt(draw, case, TAIL))
                    times.setdefault(hits, []).append(ask(llm, asked, least_loaded=n * 9 // 10))
        return times


def prompt(draw: random.Random, case: Case, tokens: int) -> list[int]:
    """A random prompt, a tail included, that has nothing in common with any other."""
    return [draw.randrange(1, case.shape.vocab) for _ in range(tokens + TAIL)]


def ask(llm: Any, tokens: list[int], least_loaded: int = 0) -> float:
    """Seconds to the first token of a prompt of which so many tokens have to come from the connector."""
    from vllm import SamplingParams

    before = loaded(llm)
    started = time.perf_counter()
    llm.generate(
        [{"prompt_token_ids": tokens}],
        SamplingParams(max_tokens=1, temperature=0.0, detokenize=False),
        use_tqdm=False,
    )
    seconds = time.perf_counter() - started
    if (got := loaded(llm) - before) < least_loaded:
        raise RuntimeError(f"of {len(tokens)} tokens {got} were loaded, expected {least_loaded}")
    return seconds


def loaded(llm: Any) -> int:
    """Tokens that came from the connector so far."""
    name = "vllm:external_prefix_cache_hits"
    return sum(int(metric.value) for metric in llm.get_metrics() if metric.name == name)


def settle(llm: Any, other: list[int]) -> None:
    """Let stores end, of which some engines hear only while they step, and empty the device's prefix cache."""
    for _ in range(3):
        time.sleep(0.5)
        ask(llm, other)
    if not llm.reset_prefix_cache():
        raise RuntimeError("the device's prefix cache was not emptied")


if __name__ == "__main__":
    main()
