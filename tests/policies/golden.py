"""Golden misses: how many chunks of the committed conversations a policy misses, by the tier's capacity in chunks.

    python -m tests.policies.golden             count every built-in policy, write golden_misses.json anew
    python -m tests.policies.golden NAME ...    print the counts of these policies, write nothing

A NAME is what `eviction:` takes in the YAML: `lru`, or `package.module:Class`.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvtier.config import Plugin
from kvtier.policy import EvictionPolicy
from kvtier.registry import EVICTION, build
from kvtier.testing.policies import FixedFacts
from tests.policies.conversations import misses

SIZES = (20, 60, 150)
FILE = Path(__file__).with_name("golden_misses.json")


def golden() -> dict[str, dict[str, int]]:
    """Read the committed counts: by policy, then by capacity."""
    counts: dict[str, dict[str, int]] = json.loads(FILE.read_text())
    return counts


def make(name: str) -> EvictionPolicy:
    """Build a policy with its default options."""
    return build("eviction", Plugin(kind=name), FixedFacts())


def count(name: str) -> dict[str, int]:
    """Count the misses of one policy at every capacity."""
    return {str(size): misses(make(name), size) for size in SIZES}


def table(names: Iterable[str]) -> str:
    """Write the counts of policies as the golden file has them."""
    return json.dumps({name: count(name) for name in sorted(names)}, indent=1) + "\n"


def main(names: Sequence[str]) -> None:
    if names:
        sys.stdout.write(table(names))
    else:
        FILE.write_text(table(EVICTION))


if __name__ == "__main__":
    main(sys.argv[1:])
