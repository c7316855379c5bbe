"""The trace files that are read, one format per module; `FORMATS` names them."""

from collections.abc import Callable

from kvtier.sim.formats.azure import AzureFormat
from kvtier.sim.formats.bailian import BailianFormat
from kvtier.sim.formats.base import Drawing, TraceFormat
from kvtier.sim.formats.burstgpt import BurstGptFormat
from kvtier.sim.formats.mooncake import MooncakeFormat
from kvtier.sim.formats.own import OwnFormat
from kvtier.sim.formats.weka import WekaFormat

__all__ = ["FORMATS", "Drawing", "TraceFormat"]

FORMATS: dict[str, Callable[[Drawing], TraceFormat]] = {
    "kvtier": OwnFormat,
    "weka": WekaFormat,
    "bailian": BailianFormat,
    "mooncake": MooncakeFormat,
    "azure": AzureFormat,
    "burstgpt": BurstGptFormat,
}
