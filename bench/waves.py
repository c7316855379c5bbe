"""Long hits and crowds of them on drives of several speeds, in virtual time: the real brain, and the real queues before the drive.

Waits are in virtual seconds: this machine is in no figure.
"""

import sys
from pathlib import Path

from _report import machine, report

sys.path.append(str(Path(__file__).parents[1]))
from kvtier.chunking import auto_chunk_tokens
from tests.brain.drive import Rig, crowd, long_prefix, served

GB = (14, 7, 3.5, 1.5)
CROWDS = ((2, 0.9), (4, 0.6), (8, 0.6), (8, 0.9), (1, 1.5))
TOKENS = auto_chunk_tokens(16, 128 << 10).tokens


def main() -> None:
    """Print every result."""
    machine()
    for gb in GB:
        case = f"128k of an 8B model, {gb} GB/s"
        rig = long_prefix(gb * 1e9, TOKENS)
        rig.run()
        tell(rig, case, 1.0 if gb > 1.5 else None)
        report("waves", f"{case}, learned rate by the true one", rig.learned / gb / 1e9, "times")
        rig = long_prefix(gb * 1e9, TOKENS)
        rig.run(lambda rig=rig: rig.clock.now >= rig.prompts[0].arrived + 0.5)
        rig.drive.stalled = True
        rig.run()
        stalled = f"{case}, learned rate by the true one, after late reads"
        report("waves", stalled, rig.learned / gb / 1e9, "times")
    for n, share in CROWDS:
        rig = crowd(n, share)
        rig.run()
        tell(rig, f"{n} x {share} of DRAM", 1.0 if share < 1 else None)
    rig = crowd(8, 0.6)
    decoder = rig.decode(every_s=0.02)
    rig.run()
    tell(rig, "8 x 0.6 beside one that stores", 1.0)
    taken = decoder.taken / decoder.offered
    report("waves", "8 x 0.6, chunks stored of those offered", taken, "share", 0.97)


def tell(rig: Rig, case: str, target: float | None) -> None:
    """Report what a rig's requests were given, how long they waited, and for how long nothing moved."""
    report("waves", f"{case}, served", served(rig), "share", target)
    waits = [prompt.wait_s for prompt in rig.prompts]
    report("waves", f"{case}, mean wait", sum(waits) / len(waits), "s")
    report("waves", f"{case}, all wait and nothing moves", rig.stuck_s, "s", 0.0)


if __name__ == "__main__":
    main()
