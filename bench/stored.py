"""What lossless storage gains: tokens in the same capacity, and the time to the first token from a slow disk.

Real text through a trained model, as its KV is what codecs are made for. The disk gives 500 MB/s, by the
bytes that are really read; every hit comes from it, never from DRAM or the device.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from _quality import ask, engine, tier_counts
from _report import machine, report
from quality import MODEL, held_out, run_child

if TYPE_CHECKING:
    from vllm import LLM

CHUNK = 128
CHUNK_NBYTES = CHUNK * 4096
PROMPT = 24 * CHUNK + 1  # tokens
PROMPTS = 10
ASKED = 4  # the last ones, which the tier still holds
ROUNDS = 5
CAPACITY = 64 << 20
DISK = 500e6  # bytes per second
GAIN_TARGET = 1.4


def main() -> None:
    """Measure and report."""
    machine()
    if not MODEL.is_dir():
        print(f"left out: there is no {MODEL}")
        return
    prompts = list(held_out(PROMPTS, PROMPT))[:PROMPTS]
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
        found = {codec: run(Path(folder), prompts, codec) for codec in ("raw", "lossless")}
    raw, lossless = found["raw"], found["lossless"]
    for codec, each in found.items():
        tokens = each["tier_chunks"] * CHUNK
        report("stored", f"{codec}, tokens in {CAPACITY >> 20} MiB", tokens, "tokens")
        report("stored", f"{codec}, first token of {PROMPT} tokens", each["seconds"], "s")
    gain = lossless["tier_chunks"] / raw["tier_chunks"]
    report("stored", "tokens, lossless against raw", gain, "times", GAIN_TARGET)
    slower = lossless["seconds"] / raw["seconds"]
    report("stored", "first token, lossless against raw", slower, "times", 1.0)


def run(folder: Path, prompts: list[list[int]], codec: str) -> dict[str, float]:
    """Fill the tier with one engine; time hits with the next, whose DRAM is small and empty."""
    cold = {
        "name": "cold",
        "kind": "file",
        "path": tempfile.mkdtemp(dir=folder),
        "capacity": CAPACITY,
        "codec": codec,
        "write": "through",
        "deadline": "20s",
        "wrappers": [{"kind": "_disk:SlowDisk", "bytes_per_s": DISK}],
    }
    found: dict[str, float] = {}
    # Reads may take half of the slots; four prompts in turn push each other out of the others.
    for slots, rounds, asked in ((96, 0, prompts), (50, ROUNDS, prompts[-ASKED:])):
        tiers = [{"kind": "dram", "capacity": slots * CHUNK_NBYTES}, cold]
        kvtier = {"chunk_tokens": CHUNK, "load": "always", "tiers": tiers}
        setup = {"kvtier": kvtier, "prompts": asked, "rounds": rounds, "tokens": PROMPT + CHUNK}
        found |= json.loads(run_child(Path(__file__), setup, folder).read_text())
    return found


def child(setup_path: str, out_path: str) -> None:
    """Store every prompt and count, or time the hits."""
    setup: dict[str, Any] = json.loads(Path(setup_path).read_text())
    llm = engine(setup, blocks=32)
    told = hits(llm, setup) if setup["rounds"] else fill(llm, setup["prompts"])
    Path(out_path).write_text(json.dumps(told))
    llm.llm_engine.engine_core.shutdown()


def fill(llm: "LLM", prompts: list[list[int]]) -> dict[str, float]:
    """Store the prompts and count the chunks that the tier holds."""
    for prompt in prompts:
        ask(llm, [prompt], max_tokens=1)
        for _ in range(10):  # steps, in which what waits is written
            ask(llm, [[3, 1, 4]], max_tokens=1)
    return {"tier_chunks": tier_counts(llm)["tier_chunks"]}


def hits(llm: "LLM", setup: dict[str, Any]) -> dict[str, float]:
    """Time the first token of prompts of which all whole chunks come from the tier."""
    ask(llm, [[3, 1, 4]] * 20, max_tokens=1)  # the scan ends
    seconds = []
    for _ in range(setup["rounds"]):
        for prompt in setup["prompts"]:
            llm.reset_prefix_cache()
            started = time.perf_counter()
            (output,) = ask(llm, [prompt], max_tokens=1)
            seconds.append(time.perf_counter() - started)
            if output.num_cached_tokens != PROMPT - 1:
                raise RuntimeError(f"{output.num_cached_tokens} tokens reused of {PROMPT}")
    reads = tier_counts(llm)["tier_reads"]
    if reads < len(seconds) * (PROMPT // CHUNK):
        raise RuntimeError(f"only {reads} chunks came from the tier")
    return {"seconds": median(seconds)}


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) == 3 else main()
