"""What every bench prints: the machine, then one JSON object per result."""

import json
import os
import platform
from pathlib import Path


def machine() -> None:
    """Print the hardware that the results are of, as one JSON line."""
    print(
        json.dumps(
            {
                "machine": _field("/proc/cpuinfo", "model name"),
                "cpus": len(os.sched_getaffinity(0)),
                "memory_gib": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
                "kernel": platform.release(),
                "python": platform.python_version(),
            }
        ),
        flush=True,
    )


def report(bench: str, case: str, value: float, unit: str, target: float | None = None) -> None:
    """Print one result; `target` is what it should reach, where it should reach something."""
    result = {
        "bench": bench,
        "case": case,
        "value": round(value, 4),
        "unit": unit,
        "target": target,
    }
    print(json.dumps(result), flush=True)


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"
