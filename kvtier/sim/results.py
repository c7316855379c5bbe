"""What a sweep returns: one row per policy and size, as the JSON has it."""

import msgspec


class Ttft(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to the first token, by the queueing model of `kvtier.sim.engine`."""

    p50: float
    p95: float
    p99: float
    mean: float


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """How full each tier is at one time."""

    at_s: float
    used: dict[str, int]  # bytes per tier


class ReplayRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One replay, or one ceiling. Ratios are shares of the whole trace."""

    policy: str
    capacity_tokens: int | None  # None: no bound
    hit_blocks: float
    hit_tokens: float
    saved_prefill_s: float
    saved_prefill: float
    bytes: dict[str, int]  # moved, `<tier>_in` and `<tier>_out`
    ceiling: bool = False  # what no policy can know
    requests: int = 0
    seconds: float = 0.0  # of computing that the replay took
    hits_per_tier: dict[str, int] | None = None  # chunks
    write_amplification: dict[str, float] | None = None  # bytes written by bytes computed
    ttft_s: Ttft | None = None
    prefetched: dict[str, int] | None = None
    refused_reads: int = 0  # requests that computed because reading cost more
    late_reads: int = 0  # requests whose reads missed their deadline
    utilisation: float = 0.0  # share of the time that the engine computed prompts
    occupancy: list[Moment] | None = None


class ReplayTable(msgspec.Struct, frozen=True, kw_only=True):
    """A whole sweep."""

    trace: str
    requests: int
    block_references: int
    block_tokens: int
    skipped_rows: int
    assumptions: dict[str, object]
    rows: list[ReplayRow]
