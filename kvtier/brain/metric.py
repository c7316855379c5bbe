"""How a field of a table becomes a metric: what counts, what is measured again and again, and how they are declared."""

from collections.abc import Iterator
from dataclasses import field, fields
from typing import Any, Generic, Literal, NamedTuple, TypeVar

K = TypeVar("K", bound=str)
MOST_SAMPLES = 4096


class Tally(dict[K, int], Generic[K]):
    """A count for each key; 0 for one that was never counted."""

    def __missing__(self, key: K) -> int:
        return 0


class Samples(dict[str, list[float]]):
    """What was measured since somebody took it, by label; of each not more than the first few thousand."""

    def of(self, label: str) -> list[float]:
        """Return the measurements of a label; whoever takes them empties this list."""
        found = self.get(label)
        if found is None:
            found = self[label] = []
        return found

    def note(self, value: float, label: str = "") -> None:
        """Add a measurement."""
        found = self.of(label)
        if len(found) < MOST_SAMPLES:
            found.append(value)


class Metric(NamedTuple):
    """How one field is shown."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    field: str = ""
    of: tuple[str, ...] = ()  # values of its own label that are shown from the start, at 0
    buckets: tuple[float, ...] = ()
    alias: str = ""  # vLLM's own name for it; of tiers below the first


def counter(
    name: str, text: str, *, by: str = "", of: tuple[str, ...] = (), alias: str = ""
) -> Any:
    """Declare a number that only grows, or with `by` one for each value of that label: `of` are those known."""
    labels = (by,) if by else ()
    metric = Metric(f"kvtier:{name}", "counter", text, labels, of=of, alias=alias)
    if by:
        return field(default_factory=Tally, metadata={"metric": metric})
    return field(default=0, metadata={"metric": metric})


def gauge(name: str, text: str, *, alias: str = "") -> Any:
    """Declare a number of the moment."""
    metric = Metric(f"kvtier:{name}", "gauge", text, alias=alias)
    return field(default=0, metadata={"metric": metric})


def histogram(
    name: str, text: str, buckets: tuple[float, ...], *, by: str = "", of: tuple[str, ...] = ()
) -> Any:
    """Declare what is measured again and again, with `by` for each value of that label."""
    labels = (by,) if by else ()
    metric = Metric(f"kvtier:{name}", "histogram", text, labels, of=of or ("",), buckets=buckets)
    return field(default_factory=Samples, metadata={"metric": metric})


Value = tuple[Metric, tuple[str, ...], float | list[float]]
"""A metric, its labels, and what it is now; of a histogram what was measured since it was emptied."""


def metrics(table: type[Any], *labels: str) -> tuple[Metric, ...]:
    """List the metrics that a table declares, each with these labels before its own."""
    declared = [(each.name, each.metadata.get("metric")) for each in fields(table)]
    return tuple(
        metric._replace(labels=(*labels, *metric.labels), field=name)
        for name, metric in declared
        if metric
    )


def shown(
    metric: Metric, labels: tuple[str, ...], value: float | Tally[str] | Samples
) -> Iterator[Value]:
    """List what a metric shows of the value of its field."""
    if isinstance(value, Samples):
        for each in dict.fromkeys((*metric.of, *value)):
            own = (each,) if each else ()
            yield metric, (*labels, *own), value.of(each)
    elif isinstance(value, Tally):
        for each in dict.fromkeys((*metric.of, *value)):
            yield metric, (*labels, str(each)), value[each]
    else:
        yield metric, labels, value
