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
from typing import Any

from _quality import ask, engine, tier_counts
from _report import machine, report
from quality import MODEL, held_out, run_child

CHUNK = 128
CHUNK_NBYTES = CHUNK * 4096
PROMPT = 32 * CHUNK + 1  # tokens
PROMPTS = 8
ASKED = 3  # the last ones, which the tier still holds
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
    """Run one engine in a process of its own."""
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
    tiers = [{"kind": "dram", "capacity": 40 * CHUNK_NBYTES}, cold]
    kvtier = {"chunk_tokens": CHUNK, "load": "always", "tiers": tiers}
    setup = {"kvtier": kvtier, "prompts": prompts, "tokens": PROMPT + CHUNK}
    measured: dict[str, float] = json.loads(run_child(Path(__file__), setup, folder).read_text())
    return measured


def child(setup_path: str, out_path: str) -> None:
    """Store every prompt, count, and time the last ones."""
    setup: dict[str, Any] = json.loads(Path(setup_path).read_text())
    llm = engine(setup, blocks=40)
    ask(llm, setup["prompts"], max_tokens=1)
    counts = tier_counts(llm)
    seconds = []
    for _ in range(ROUNDS):
        for prompt in setup["prompts"][-ASKED:]:
            llm.reset_prefix_cache()
            started = time.perf_counter()
            (output,) = ask(llm, [prompt], max_tokens=1)
            seconds.append(time.perf_counter() - started)
            if output.num_cached_tokens != PROMPT - 1:
                raise RuntimeError(f"{output.num_cached_tokens} tokens reused of {PROMPT}")
    reads = tier_counts(llm)["tier_reads"]
    if reads < ROUNDS * ASKED * (PROMPT // CHUNK):
        raise RuntimeError(f"only {reads} chunks came from the tier")
    Path(out_path).write_text(json.dumps({**counts, "seconds": median(seconds)}))
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) == 3 else main()
