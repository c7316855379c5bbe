"""`kvtier plan`: what fits where, and how much memory the traffic needs, before anything is bought."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from kvtier.cli.geometry import Geometry, locate, read_geometry
from kvtier.cli.options import read
from kvtier.cli.outputs import JsonFile, check_writable, console_beside, plain, save_json
from kvtier.cli.replay import assumed, policies
from kvtier.cli.tracefile import Format, open_trace, say_skipped
from kvtier.config import Plugin
from kvtier.errors import ConfigError
from kvtier.sim.lru import replay_one_tier
from kvtier.sim.plan import Fit, Kv, break_even, fit, smallest
from kvtier.sim.setting import ASSUMED, Prefill, worth
from kvtier.trace.trace import Trace
from kvtier.units import format_count, format_nbytes, parse_count, parse_room

_WINDOW = "sliding_attention"


class Kvs(NamedTuple):
    """KV as memory and as an NVMe hold it: of ranks that have the same KV, memory has a copy each, an NVMe one for all."""

    memory: Kv
    nvme: Kv


class Sizes(NamedTuple):
    """The memory in the plan, in bytes."""

    gpu: int
    weights: int
    dram: int
    nvme: int


class Need(NamedTuple):
    """The memory that the traffic needs; shares are of the prefill's seconds, saved."""

    best_share: float  # by an infinite cache
    tokens: int  # in DRAM and NVMe together
    dram_tokens: int
    dram_bytes: int
    nvme_bytes: int
    dram_share: float | None  # None: DRAM for its own target holds all
    share: float


def plan(  # noqa: PLR0913 - a command's options are its arguments
    model: Annotated[
        Path,
        typer.Option(help="A model: directory, config.json, or name in the cache of Hugging Face."),
    ],
    gpu_memory: Annotated[str, typer.Option(help="Of all ranks together.")],
    context: Annotated[str, typer.Option(help="Tokens of one conversation.")] = "32k",
    users: Annotated[int, typer.Option(min=1, help="Conversations at the same time.")] = 100,
    weights: Annotated[
        str,
        typer.Option(help="Bytes of the weights, of all ranks; default: those of MODEL's files."),
    ] = "",
    gpu_utilisation: Annotated[float, typer.Option(help="Share that vLLM may use.")] = 0.9,
    dram: Annotated[str, typer.Option(help="DRAM for KV.")] = "0B",
    nvme: Annotated[str, typer.Option(help="NVMe for KV.")] = "0B",
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks.")] = 1,
    kv_dtype: Annotated[str, typer.Option(help="Dtype of the KV cache.")] = "auto",
    prefill_rate: Annotated[float, typer.Option(help="Tokens per second.")] = ASSUMED.rate,
    prefill_knee: Annotated[
        str, typer.Option(help="Context at which attention costs as much as the rest.")
    ] = f"{ASSUMED.knee:g}",
    trace: Annotated[Path | None, typer.Option(help="Size DRAM and NVMe for this traffic.")] = None,
    format: Format = "auto",
    target: Annotated[
        float, typer.Option(help="Share of what an infinite cache would save.", max=1.0)
    ] = 0.8,
    dram_target: Annotated[
        float, typer.Option(help="Share of it that DRAM alone should give.", max=1.0)
    ] = 0.4,
    policy: Annotated[str, typer.Option(help="Eviction policy.")] = "lru",
    json_file: JsonFile = None,
) -> None:
    """Say how much KV a model makes, what fits where, and what reading must cost to be worth it."""
    check_writable(json_file)
    evicting = policies(policy)[0]
    given = assumed({"prefill_rate": prefill_rate, "prefill_knee": prefill_knee}, None)
    if not 0 < gpu_utilisation <= 1:
        raise ConfigError(f"--gpu-utilisation: {gpu_utilisation:g} is not a share: from 0 to 1")
    geometry = read_geometry(model, ranks=tp, dtype=kv_dtype)
    kv = kvs_of(geometry, tp)
    tokens = read(parse_count, context, "--context")
    sizes = Sizes(
        int(read(parse_room, gpu_memory, "--gpu-memory") * gpu_utilisation),
        read(parse_room, weights, "--weights") if weights else weight_nbytes(model),
        read(parse_room, dram, "--dram"),
        read(parse_room, nvme, "--nvme"),
    )
    if sizes.gpu <= sizes.weights:
        raise ConfigError("--weights: they do not fit into --gpu-memory")
    prefill = Prefill.of(given)
    console = console_beside(json_file)
    for line in _model(geometry, kv, tokens):
        console.print(escape(line))
    console.print(_weights(sizes.weights))
    found = places(sizes, kv, tokens)
    console.print(_places(found, users, kv.memory.nbytes(tokens)))
    console.print(escape(_worth(kv.memory, tokens, prefill)))
    need = None
    if trace is not None:
        file, loaded = open_trace(trace, format)
        blocks = f"blocks of {loaded.block_tokens} tokens"
        console.print(plain(f"{trace}: {len(loaded):,} requests, {policy}, {blocks}"))
        need = sizing(loaded, evicting, kv, prefill, (dram_target, target))
        for line in _needed(need, (dram_target, target)):
            console.print(escape(line))
        say_skipped(file.skipped, console)
    told = {
        "kv_bytes_per_token": kv.memory.nbytes_per_token,
        "kv_bytes_per_conversation": kv.memory.nbytes(tokens),
        "weights_bytes": sizes.weights,
        "places": [each._asdict() for each in found],
        "prefill_seconds": prefill.seconds(0, tokens),
        "break_even_bytes_per_second": break_even(kv.memory, tokens, prefill),
        "needed": need and need._asdict(),
    }
    save_json(json_file, told)


def weight_nbytes(model: Path) -> int:
    """Add up the weight files of a model's directory; 0 where there are none."""
    model = locate(model)
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) if model.is_dir() else 0


def _weights(nbytes: int) -> str:
    if nbytes:
        return f"weights: {format_nbytes(nbytes)}, left out of what the GPU has for KV"
    return "weights: not counted, because MODEL has no files of them; --weights says how many bytes"


def kvs_of(geometry: Geometry, ranks: int) -> Kvs:
    """Say how much KV a model makes, wherever it lies."""
    memory = kv_of(geometry, ranks)
    return Kvs(memory, kv_of(geometry, 1) if geometry.copies else memory)


def kv_of(geometry: Geometry, ranks: int) -> Kv:
    """Split the KV that so many ranks hold of a model into what every token adds and what only a window keeps."""
    layers = dict(geometry.groups)
    windowed = layers.get(_WINDOW, 0) * geometry.group_layers if geometry.window else 0
    windowed = min(windowed, geometry.layers - 1) if geometry.full_groups else windowed
    full = geometry.layers - windowed
    each = geometry.layer_nbytes * ranks
    return Kv(
        nbytes_per_token=full * each,
        window_nbytes=windowed * each * (geometry.window or 0),
        window_tokens=(geometry.window or 0) if windowed else 0,
    )


def places(sizes: Sizes, kv: Kvs, context: int) -> list[Fit]:
    """List what each memory holds; the GPU what its weights leave."""
    named = [
        ("GPU", sizes.gpu - sizes.weights, kv.memory),
        ("DRAM", sizes.dram, kv.memory),
        ("NVMe", sizes.nvme, kv.nvme),
    ]
    return [fit(name, nbytes, held, context) for name, nbytes, held in named if nbytes > 0]


def sizing(
    trace: Trace, policy: Plugin, kv: Kvs, prefill: Prefill, targets: tuple[float, float]
) -> Need | None:
    """Find DRAM for the first target and DRAM with NVMe for the second; None where no size is enough."""

    def saved(blocks: int) -> float:
        done = replay_one_tier(trace, policy, slots=blocks)
        return worth(trace, done.hits, prefill).saved_prefill

    small, large = (smallest(trace, target, saved, prefill) for target in targets)
    if large is None:
        return None
    below = large.tokens - small.tokens if small else 0
    nvme = max(0, below) * kv.nvme.nbytes_per_token
    dram = (large.tokens - max(0, below)) * kv.memory.nbytes_per_token
    shares = (small.share if small and below > 0 else None, large.share)
    return Need(
        large.best, large.tokens, large.tokens - max(0, below), int(dram), int(nvme), *shares
    )


def _needed(need: Need | None, targets: tuple[float, float]) -> list[str]:
    if need is None:
        return [f"no size reaches {targets[1]:.0%} of what an infinite cache saves"]
    total = format_nbytes(need.dram_bytes + need.nvme_bytes)
    found = f"{format_count(need.tokens)} tokens, {total}, saves {need.share:.1%}"
    lines = [
        f"an infinite cache saves {need.best_share:.1%} of the prefill",
        f"DRAM + NVMe for {targets[1]:.0%} of that: {found}",
    ]
    if need.dram_share is not None:
        lines.append(
            f"of it DRAM, for {targets[0]:.0%}: {format_count(need.dram_tokens)} tokens, "
            f"{format_nbytes(need.dram_bytes)}, saves {need.dram_share:.1%}"
        )
        lines.append(f"the rest, NVMe: {format_nbytes(need.nvme_bytes)}")
    return lines


def _model(geometry: Geometry, kvs: Kvs, context: int) -> list[str]:
    kv, each = kvs.memory, f"KV per token: {format_nbytes(kvs.memory.nbytes_per_token)}"
    if geometry.copies:
        once = format_nbytes(kvs.nvme.nbytes_per_token)
        each += f", of all ranks, which have the same; on NVMe {once}, one record for all"
    lines = [f"model: {geometry.layers} layers, {geometry.attention}, {geometry.dtype}", each]
    if kv.window_tokens:
        lines.append(
            f"KV of the sliding windows of {kv.window_tokens:,} tokens: "
            f"{format_nbytes(kv.window_nbytes)} per conversation"
        )
    lines.append(
        f"a conversation of {format_count(context)} tokens: {format_nbytes(kv.nbytes(context))}"
    )
    return lines


def _places(found: list[Fit], users: int, each: float) -> Table:
    table = Table("where", box=None)
    for name in ("bytes for KV", "tokens", "conversations", "users so far"):
        table.add_column(name, justify="right")
    total = 0.0
    for place in found:
        total += place.conversations
        cells = [format_nbytes(place.nbytes), format_count(place.tokens)]
        cells += [f"{place.conversations:,.1f}", f"{min(1.0, total / users):.0%}"]
        table.add_row(place.name, *cells)
    table.add_row("all users", format_nbytes(users * each), "", f"{users:,}", "")
    return table


def _worth(kv: Kv, context: int, prefill: Prefill) -> str:
    seconds = prefill.seconds(0, context)
    rate = break_even(kv, context, prefill)
    return (
        f"computing {format_count(context)} tokens takes {seconds:.2f} s at {prefill.rate:,.0f} tokens/s; "
        f"reading them is faster above {format_nbytes(rate)}/s"
    )
