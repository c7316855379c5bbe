"""The eviction policies on two real traces, block by block: blocks hit and prefill seconds saved, beside the ceilings.

Reads `../shared/traces`. Mooncake in its own blocks of 512 tokens; Weka in chunks of 1024, its sessions started
as a seeded Poisson process of 0.02 per second. Names after the command choose policies, `mooncake` or `weka` traces.
"""

import sys
from pathlib import Path

from _report import machine, report

from kvtier.config import Plugin
from kvtier.registry import EVICTION
from kvtier.sim.jobs import BlockJob
from kvtier.sim.results import ReplayRow
from kvtier.sim.setting import Prefill
from kvtier.trace.files import TraceFile
from kvtier.trace.trace import Trace

TRACES = Path(__file__).parents[2] / "shared" / "traces"
FILES = {"mooncake": "mooncake_conversation.jsonl.gz", "weka": "weka_agentic_v8.jsonl.gz"}
CHUNK_TOKENS = {"mooncake": 512, "weka": 1024}
SIZES = (1_000_000, 3_000_000, 10_000_000)
RIVALS = ("lru", "arc", "s3fifo")
AIMS = {1_000_000: 1.25, 3_000_000: 1.25, 10_000_000: 0.98}  # of the best rival; on Weka .98


def replay(trace: Trace, name: str, capacity: int) -> ReplayRow:
    """Replay one policy, or `belady`."""
    job = BlockJob(
        name=name,
        eviction=Plugin(kind=name) if name in EVICTION else None,
        capacity_tokens=capacity,
        nbytes_per_token=1,
        prefill=Prefill(),
    )
    return job.run(trace)


def compare(trace_name: str, trace: Trace, names: list[str], capacity: int) -> None:
    """Report every policy at one size, and `session` by the best of its rivals."""
    rows = {}
    for name in names:
        rows[name] = row = replay(trace, name, capacity)
        case = f"{trace_name}, {capacity // 10**6}M tokens, {name}"
        report("policies", f"{case}, blocks hit", row.hit_blocks, "share")
        report("policies", f"{case}, prefill saved", row.saved_prefill, "share")
        report("policies", f"{case}, processor time", row.seconds, "s")
    if {"session", *RIVALS} <= rows.keys():
        aim = AIMS[capacity] if trace_name == "mooncake" else 0.98
        case = f"{trace_name}, {capacity // 10**6}M tokens, session by the best rival"
        hit = rows["session"].hit_blocks / max(rows[name].hit_blocks for name in RIVALS)
        saved = rows["session"].saved_prefill / max(rows[name].saved_prefill for name in RIVALS)
        report("policies", f"{case}, blocks hit", hit, "ratio", aim)
        report("policies", f"{case}, prefill saved", saved, "ratio", aim)


def main(words: list[str]) -> None:
    """Print every result."""
    machine()
    chosen = [word for word in words if word not in FILES]
    for trace_name in [word for word in words if word in FILES] or FILES:
        if not (TRACES / FILES[trace_name]).is_file():
            print(f"# left out: there is no {TRACES / FILES[trace_name]}")
            continue
        trace = TraceFile(TRACES / FILES[trace_name]).load(CHUNK_TOKENS[trace_name])
        for capacity in SIZES:
            compare(trace_name, trace, chosen or [*sorted(EVICTION), "belady"], capacity)


if __name__ == "__main__":
    main(sys.argv[1:])
