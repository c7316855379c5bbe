"""The trace files that are read, one format per module; `FORMATS` names them."""

from collections.abc import Callable

from kvtier.trace.formats.azure import AzureFormat
from kvtier.trace.formats.bailian import BailianFormat
from kvtier.trace.formats.base import Drawing, TraceFormat
from kvtier.trace.formats.burstgpt import BurstGptFormat
from kvtier.trace.formats.mooncake import MooncakeFormat
from kvtier.trace.formats.own import OwnFormat
from kvtier.trace.formats.weka import WekaFormat

__all__ = ["FORMATS", "Drawing", "TraceFormat"]

FORMATS: dict[str, Callable[[Drawing], TraceFormat]] = {
    "kvtier": OwnFormat,
    "weka": WekaFormat,
    "bailian": BailianFormat,
    "mooncake": MooncakeFormat,
    "azure": AzureFormat,
    "burstgpt": BurstGptFormat,
}
