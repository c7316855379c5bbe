"""`kvtier config`: say what a configuration would do, before an engine is started with it."""

import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from kvtier import topology
from kvtier.cli.geometry import Geometry, read_geometry
from kvtier.cli.outputs import JsonFile, check_writable, console_beside, plain, save, save_json
from kvtier.cli.room import Chunk, chunk_of, chunks_held, refuse_odd_chunks, tier_nbytes, tokens_of
from kvtier.cli.suggest import suggest
from kvtier.config import Config, Plugin, clamped, load, share, sharers
from kvtier.config.codecs import codec
from kvtier.config.schema import schema
from kvtier.doctor import disks
from kvtier.doctor.finding import Level
from kvtier.errors import ConfigError
from kvtier.memory.region import free_huge_nbytes
from kvtier.registry import STAGES, in_memory, is_asked, kept_once
from kvtier.tiers.mount import refuse_network
from kvtier.tiers.ownership import refuse_shared
from kvtier.types import PAGE
from kvtier.units import format_nbytes


class TierRoom(msgspec.Struct):
    """What one tier holds; the last four say nothing without a model."""

    tier: str
    nbytes: int  # of all ranks on this node
    auto: bool
    nbytes_per_rank: int
    one_for_all: bool  # ranks have the same KV, and one keeps the records of all
    chunks: int = 0  # of each rank
    chunk_nbytes: int = 0
    tokens: int = 0
    at_least: bool = False  # more, by as much as the codec saves


app = typer.Typer(help="Look at configurations, or make one.", no_args_is_help=True)
app.command()(suggest)


@app.command("schema")
def print_schema(
    output: Annotated[Path | None, typer.Option(help="Write it here, not to the screen.")] = None,
) -> None:
    """Print the JSON Schema of the YAML, by which an editor completes keys and underlines mistakes."""
    check_writable(output)
    text = json.dumps(schema(), indent=2) + "\n"
    if output:
        save(output, text)
    else:
        typer.echo(text, nl=False)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The YAML to check.", show_default=False)],
    model: Annotated[
        Path | None,
        typer.Option(
            help="A model: directory, config.json, or name in the cache of Hugging Face. Adds what each tier would hold."
        ),
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks on this node.")] = 1,
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the engine's block.")] = 16,
    kv_dtype: Annotated[str, typer.Option(help="Dtype of the KV cache, fp8 for example.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Check FILE as an engine on this machine would, and explain what it would do; status 1 if a tier would be closed."""
    check_writable(json_file)
    written = load(file)
    refuse_places(written)
    refuse_odd_chunks(written, block_tokens)
    geometry = read_geometry(model, ranks=tp, dtype=kv_dtype) if model else None
    chunk = chunk_of(written, geometry, block_tokens, tp) if geometry else None
    config = fit_dram(written, tp, chunk.slot_nbytes if chunk else PAGE)
    refuse_memory(config)
    own = [index for index, tier in enumerate(config.tiers) if not (index and is_asked(tier.kind))]
    held = [tier_room(config, index, geometry, chunk, tp) for index in own]
    console = console_beside(json_file)
    verdict = disks.judge(config)
    ill = closed(config, verdict)
    without = f", but without {', '.join(map(repr, ill))}" if ill else ""
    console.print(f"{plain(file)}: an engine would start with it on this machine{plain(without)}")
    if geometry and chunk:
        console.print(_describe_model(geometry, chunk, tp))
    console.print(_room_table(held, geometry), _behaviour_table(config))
    said = [*filter(None, [clamp_note(written, config)]), *notes(config, geometry, verdict)]
    for note in said:
        console.print(f"- {escape(note)}")
    save_json(
        json_file, {"closed": ill, "chunk": chunk and chunk._asdict(), "tiers": held, "notes": said}
    )
    if ill:
        raise typer.Exit(1)


def closed(config: Config, verdict: disks.Verdict) -> list[str]:
    """Name the file tiers that an engine would start without, because nothing can be written there now."""
    files = (tier for tier in config.tiers if tier.kind == "file")
    return [tier.name for tier in files if Path(str(tier.options["path"])) in verdict.failed]


def fit_dram(config: Config, ranks: int, slot_nbytes: int) -> Config:
    """Give tier 0 the capacity that an engine that starts here now would give it.

    Raises:
        ConfigError: its start would be refused.
    """
    dram, *lower = config.tiers
    if dram.capacity is None or dram.capacity <= free_huge_nbytes(dram.numa or ()):
        return config
    wanted = share(dram.capacity, ranks)
    each = clamped(wanted, topology.free_nbytes() // ranks, slot_nbytes)
    if each == wanted:
        return config
    fitting = msgspec.structs.replace(dram, capacity=each * ranks)
    return msgspec.structs.replace(config, tiers=(fitting, *lower))


def clamp_note(written: Config, config: Config) -> str:
    """Say what `fit_dram` changed; nothing where it changed nothing."""
    wanted, taken = (each.tiers[0].capacity for each in (written, config))
    if wanted is None or taken is None or wanted == taken:
        return ""
    free = format_nbytes(topology.free_nbytes())
    return (
        f"tiers[0].capacity: {format_nbytes(wanted)}, and {free} of memory are free here now: the tier would be "
        f"clamped to {format_nbytes(taken)}"
    )


def refuse_memory(config: Config) -> None:
    """Refuse memory tiers that the start would refuse: more than is free beside the arena and each other.

    Raises:
        ConfigError: the first of them.
    """
    spare = topology.free_nbytes() - tier_nbytes(config.tiers[0])
    for index, tier in enumerate(config.tiers):
        if index and in_memory(tier.kind):
            wanted = tier.capacity or 0
            if wanted > max(spare, free_huge_nbytes(tier.numa or ())):
                raise ConfigError(
                    f"tiers[{index}].capacity: {format_nbytes(wanted)}, and "
                    f"{format_nbytes(max(0, spare))} of memory are left for it beside the tiers above"
                )
            spare -= wanted


def refuse_places(config: Config) -> None:
    """Refuse directories of file tiers that the start would refuse, because others may write there, or other machines.

    Raises:
        ConfigError: the first of them.
    """
    for index, tier in enumerate(config.tiers):
        if tier.kind == "file":
            path, where = str(tier.options["path"]), f"tiers[{index}].path"
            try:
                exclusive = bool(tier.options.get("exclusive"))
                refuse_network(Path(path), where, exclusive=exclusive)
                refuse_shared(Path(path), where)
            except OSError as exc:
                raise ConfigError(f"{where}: {path} cannot be looked at: {exc.strerror}") from exc


def notes(config: Config, geometry: Geometry | None, verdict: disks.Verdict) -> list[str]:
    """Say in words what the figures do not: what is not stored, and what may disappoint."""
    found = []
    judged = (each for each in verdict.findings if each.level is not Level.OK)
    found += [f"{each.area}: {each.what}: {each.advice}" for each in judged]
    found += [
        f"{tier.name}: other engines may use it too; its server says how much it holds, and what leaves"
        for tier in config.tiers[1:]
        if is_asked(tier.kind)
    ]
    if config.store == "prompt":
        found.append("store: prompt - what the model answers is not stored")
    if len(config.tiers) > 1 and not config.persist_lora:
        found.append("persist_lora: false - chunks of LoRA requests stay in dram")
    once = [tier.name for tier in config.tiers[1:] if kept_once(tier.kind)]
    if geometry and geometry.copies and once:
        found.append(
            f"every rank has the same KV: one rank keeps the records of {', '.join(once)}, and all read them, on one "
            "node and without other parallelism; each has a copy in the other tiers"
        )
    if geometry and geometry.window:
        found.append(
            f"window layers keep the last {geometry.window} tokens of a prefix only, so a tier may hold "
            "fewer tokens than shown by what those chunks take"
        )
    return found


def _describe_model(geometry: Geometry, chunk: Chunk, ranks: int) -> str:
    kinds = ", ".join(f"{n} x {kind.replace('_', ' ')}" for kind, n in geometry.groups)
    return escape(
        f"model: {geometry.layers} layers, {geometry.attention}, {geometry.dtype}, "
        f"{format_nbytes(geometry.nbytes_per_token)} per token and rank, {ranks} rank(s)\n"
        f"groups: {kinds} of {geometry.group_layers} layers\n"
        f"chunk: {chunk.tokens} tokens ({chunk.why}), {format_nbytes(chunk.nbytes)} per group and rank"
    )


def tier_room(
    config: Config, index: int, geometry: Geometry | None, chunk: Chunk | None, ranks: int
) -> TierRoom:
    """Say what one tier holds.

    Raises:
        ConfigError: it has no room for one chunk.
    """
    tier = config.tiers[index]
    among = sharers(tier, index, ranks, copies=bool(geometry and geometry.copies))
    nbytes = tier_nbytes(tier)
    room = TierRoom(tier.name, nbytes, tier.capacity is None, share(nbytes, among), among < ranks)
    if chunk and geometry:
        room.chunks = chunks_held(tier, chunk, index, among)
        room.chunk_nbytes = chunk.record_nbytes if index else chunk.slot_nbytes
        room.tokens = tokens_of(room.chunks, chunk, geometry)
        room.at_least = bool(index) and tier.codec.kind != "raw"
    return room


def _room_table(held: list[TierRoom], geometry: Geometry | None) -> Table:
    """List what each tier holds. Another table lists what each tier does: one table would be too wide."""
    table = Table("tier", "capacity", "per rank")
    if geometry:
        for name in ("chunks", "bytes each", "tokens"):
            table.add_column(name, justify="right")
    for room in held:
        each = format_nbytes(room.nbytes_per_rank) + (", one for all" if room.one_for_all else "")
        row = [room.tier, format_nbytes(room.nbytes) + (" (auto)" if room.auto else ""), each]
        if geometry:
            least = ">= " if room.at_least else ""
            row += [f"{least}{room.chunks:,}", format_nbytes(room.chunk_nbytes)]
            row.append(f"{least}{room.tokens:,}")
        table.add_row(*map(escape, row))
    return table


def _behaviour_table(config: Config) -> Table:
    """Who decides what each tier holds, and how it is written and read."""
    table = Table("tier", "kind", "eviction", "admission", "codec", "write", "deadline")
    for index, tier in enumerate(config.tiers):
        leaves = "-" if index and is_asked(tier.kind) else _name(tier.eviction)
        row = [tier.name, tier.kind, leaves, _name(tier.admission)]
        row += (
            [_name(tier.codec), tier.write, f"{tier.deadline_s:g}s"] if index else ["-", "-", "-"]
        )
        table.add_row(*map(escape, row))
    return table


def _name(plugin: Plugin) -> str:
    if among := plugin.options.get("among"):
        listed = " | ".join(_name(each) for each in msgspec.convert(among, list[Plugin]))
        return f"{listed}, within {plugin.options['budget_ms']:g} ms"
    if stages := plugin.options.get("stages"):
        listed = ", ".join(_name(stage) for stage in msgspec.convert(stages, list[Plugin]))
        return _short(plugin) or listed
    given = {key: value for key, value in plugin.options.items() if value is not None}
    options = ", ".join(f"{key}={value}" for key, value in given.items())
    return f"{plugin.kind} ({options})" if options else plugin.kind


def _short(pipeline: Plugin) -> str:
    """Find the short name of these stages, or nothing."""
    names = (name for name in STAGES if codec(name, "codec")["options"] == pipeline.options)
    return next(names, "")
