"""The replayer: its agreement with an independent implementation, and the speed of the brain through it.

The trace is the first argument, or `../shared/traces/mooncake_conversation.jsonl.gz` where that is there, else
the 800 rows of it in `tests/traces`. The speed is that of one core, on a million requests resampled from it; the
cross-check's figures are for the whole hour only.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from _report import machine, report

from kvtier.config import Plugin
from kvtier.sim.belady import belady
from kvtier.sim.blocks import one_tier, replay_blocks
from kvtier.sim.lru import replay_one_tier
from kvtier.trace.files import TraceFile
from kvtier.trace.trace import Trace

ROOT = Path(__file__).parents[1]
WHOLE = ROOT.parent / "shared" / "traces" / "mooncake_conversation.jsonl.gz"
SOME = ROOT / "tests" / "traces" / "mooncake_800.jsonl.gz"
REQUESTS = 1_000_000
KNOWN = {1_000_000: (0.053, 0.253), 3_000_000: (0.136, 0.353), 10_000_000: (0.285, 0.366)}
LRU = one_tier(Plugin(kind="lru"))


def agree(trace: Trace, *, whole: bool) -> None:
    """Report LRU and Belady beside what was found elsewhere."""
    for capacity, (lru, best) in KNOWN.items():
        blocks = capacity // trace.block_tokens
        hits = replay_blocks(trace, LRU, slots=blocks, block_nbytes=1).hits.sum()
        found = {"lru": hits, "belady": int(belady(trace, blocks).sum())}
        for (name, n), known in zip(found.items(), (lru, best), strict=True):
            case = f"{name}, {capacity // 10**6}M tokens, blocks hit"
            report("replay", case, n / len(trace.ids), "share", known if whole else None)


def synthesise(source: Path, output: Path) -> None:
    """Make a million requests, in a process of its own, and report its time and memory."""
    command = [sys.executable, "-m", "kvtier.cli", "trace", "synth", "--requests", str(REQUESTS)]
    started = time.perf_counter()
    subprocess.run([*command, "--source", str(source), "-o", str(output)], check=True, cwd=ROOT)
    report("replay", "synth of a million requests", time.perf_counter() - started, "s")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    report("replay", "synth of a million requests, memory", peak, "MiB")


def speed(file: Path) -> None:
    """Replay a million requests through LRU on one core; processor time, so that other work does not count."""
    started = time.process_time()
    trace = TraceFile(file).load()
    loaded = time.process_time()
    done = replay_blocks(trace, LRU, slots=3_000_000 // trace.block_tokens, block_nbytes=1)
    ended = time.process_time()
    references = len(trace.ids)
    report("replay", "block references of a million requests", references, "references")
    report("replay", "reading them", loaded - started, "s of one core")
    report("replay", "replaying them through LRU", ended - loaded, "s of one core")
    report("replay", "both", ended - started, "s of one core", 60)
    report("replay", "per reference", 1e6 * (ended - loaded) / references, "us")
    report("replay", "blocks hit", done.hits.sum() / references, "share")
    started = time.process_time()
    compiled = replay_one_tier(trace, Plugin(kind="lru"), slots=3_000_000 // trace.block_tokens)
    took = time.process_time() - started
    report("replay", "by the compiled loop, with compiling it", took, "s of one core")
    assert (compiled.hits == done.hits).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report("replay", "memory", peak, "GiB", 2)


def main() -> None:
    """Print every result."""
    machine()
    found = WHOLE if WHOLE.is_file() else SOME
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else found
    with TemporaryDirectory() as directory:
        made = Path(directory) / "million.jsonl"
        synthesise(source, made)
        speed(made)
    agree(TraceFile(source).load(), whole=source == WHOLE)


if __name__ == "__main__":
    main()
