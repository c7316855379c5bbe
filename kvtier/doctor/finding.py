"""One line of the doctor's report."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from kvtier.config import Config
from kvtier.topology import ROOT, Nvml


class Level(StrEnum):
    """How bad it is."""

    OK = "OK"
    WARN = "WARN"  # it works, slower or less than it could
    FAIL = "FAIL"  # it does not work


class Finding(NamedTuple):
    """What was found, and what to do about it."""

    area: str
    level: Level
    what: str
    advice: str = ""


class Patient(NamedTuple):
    """What is looked at: a machine by its /sys and /proc and by NVML, and the configuration that it is to run."""

    root: Path = ROOT
    config: Config | None = None
    nvml: Nvml = Nvml()

    def tiers(self, kind: str) -> list[int]:
        """Return the indexes of the configured tiers of this kind."""
        tiers = self.config.tiers if self.config else ()
        return [i for i, tier in enumerate(tiers) if tier.kind == kind]


Check = Callable[[Patient], Iterable[Finding]]
