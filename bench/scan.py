"""How fast a file tier lists its records: 100,000 of them, as at the start of an engine."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import _report

from kvtier.tier import Site
from kvtier.tiers.file import FileConfig, FileTier

NAMESPACE = "0" * 32


def main() -> None:
    """Make empty records, then list them; the median of five."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", help="where to put the records; a temporary directory by default")
    parser.add_argument("--records", type=int, default=100_000)
    arguments = parser.parse_args()
    _report.machine()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as path:
        tier = FileTier(FileConfig(path=path), Site("bench"))
        tier.open(NAMESPACE, "{}")
        populate(Path(path) / NAMESPACE / "r0", arguments.records)
        seconds = [timed(tier, arguments.records) for _ in range(5)]
        tier.close()
    case = f"list {arguments.records} records"
    _report.report("scan", case, statistics.median(seconds), "s", 2.0)


def populate(root: Path, n: int) -> None:
    """Make `n` records without content: a scan reads none."""
    for i in range(256):
        (root / f"{i:02x}").mkdir()
    for i in range(n):
        name = f"{i % 256:02x}{i:070x}"
        (root / name[:2] / f"{name}.kvt").touch()


def timed(tier: FileTier, n: int) -> float:
    """List every record once."""
    started = time.perf_counter()
    found = sum(1 for _ in tier.scan())
    assert found == n, found
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
