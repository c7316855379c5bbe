"""Prefetch on two tiers: time to first token and useful bytes, on sessions with their recorded think times.

The first 50 sessions of `../shared/traces/weka_agentic_v8.jsonl.gz`, started as a seeded Poisson process of 0.0004
per second; chunks of 1024 tokens of 160 KiB; DRAM before an NVMe of 4 TiB at 5 GiB/s; 40,000 tokens of prefill
per second. The queueing model is the replayer's (docs/replay.md).
"""

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

from _report import machine, report

from kvtier.config.parse import parse
from kvtier.sim.jobs import TierJob
from kvtier.sim.results import ReplayRow
from kvtier.trace.files import TraceFile
from kvtier.trace.formats import Drawing
from kvtier.trace.trace import Trace

WEKA = Path(__file__).parents[2] / "shared" / "traces" / "weka_agentic_v8.jsonl.gz"
SESSIONS = 50
RATE = 0.0004
SIZES = (500_000, 1_000_000)
TIERS = [
    {"name": "dram", "kind": "dram"},
    {
        "name": "nvme",
        "kind": "file",
        "path": "/tmp",
        "capacity": "4TiB",
        "write": "through",
        "deadline": "30s",
        "medium": {"read": "5GiB", "write": "5GiB"},
    },
]
SPEEDS = {"prefill_rate": 40_000.0, "kv_bytes_per_token": 160 << 10}


def load(directory: Path) -> Trace:
    """Read the first sessions."""
    lines = gzip.decompress(WEKA.read_bytes()).splitlines(keepends=True)
    sessions: dict[bytes, None] = {}
    some = []
    for line in lines:
        sessions[line.split(b'"', 4)[3]] = None
        if len(sessions) > SESSIONS:
            break
        some.append(line)
    file = directory / "weka.jsonl"
    file.write_bytes(b"".join(some))
    return TraceFile(file, drawing=Drawing(session_rate=RATE)).load(1024)


def replay(trace: Trace, prefetch: list[str], capacity: int) -> ReplayRow:
    """Replay one choice of prefetch policies."""
    config = parse({"tiers": TIERS, "prefetch": prefetch, "replay": SPEEDS})
    return TierJob(name="lru", config=config, capacity_tokens=capacity).run(trace)


def main() -> None:
    """Print every result."""
    machine()
    if not WEKA.is_file():
        print(f"# left out: there is no {WEKA}")
        return
    with TemporaryDirectory() as directory:
        trace = load(Path(directory))
    for capacity in SIZES:
        without = 0.0
        for name in ("none", "arrival", "reuse_distance"):
            row = replay(trace, [] if name == "none" else [name], capacity)
            assert row.ttft_s is not None
            assert row.prefetched is not None
            case = f"{capacity // 1000}k tokens of DRAM, {name}"
            report("prefetch", f"{case}, TTFT p50", row.ttft_s.p50, "s")
            report("prefetch", f"{case}, TTFT p95", row.ttft_s.p95, "s")
            without = without or row.ttft_s.p95
            if name != "none":
                target = 0.8 if name == "reuse_distance" else None
                report("prefetch", f"{case}, p95 by none's", row.ttft_s.p95 / without, "x", target)
                nbytes = max(1, row.prefetched["bytes"])
                target = 0.6 if name == "reuse_distance" else None
                useful = row.prefetched["useful"] / nbytes
                report("prefetch", f"{case}, useful bytes", useful, "share", target)
                report("prefetch", f"{case}, bytes read ahead", nbytes / 2**30, "GiB")


if __name__ == "__main__":
    main()
