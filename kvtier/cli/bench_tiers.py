"""`kvtier bench tiers`: measure every configured tier, on the machine that it is configured for."""

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from kvtier.chunking import TARGET_NBYTES
from kvtier.cli.geometry import read_geometry
from kvtier.cli.options import read
from kvtier.cli.outputs import STDOUT, JsonFile, check_writable, console_beside, save, save_json
from kvtier.cli.room import Chunk, chunk_of
from kvtier.cli.tuned import BLOCK, recommended, tuned
from kvtier.config import Config, TierConfig, load
from kvtier.errors import ConfigError
from kvtier.measure import fio
from kvtier.measure.advice import Advice, choose, confirmed
from kvtier.measure.report import render
from kvtier.measure.tiers import HEADS, Point, measure, measure_dram
from kvtier.registry import is_asked
from kvtier.types import PAGE
from kvtier.units import format_nbytes, parse_room

_CHUNKS = (512 << 10, 1 << 20, 2 << 20, 4 << 20)
_THREADS = (2, 4, 8, 16)
_DEPTHS = (1, 8, 32)
_MOST_FIO_S = 60.0


class Found:
    """What was measured until now; a failure or Ctrl-C in the middle does not take it away."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.disks: dict[str, fio.Disk] = {}
        self.advice: list[Advice] = []


def tiers(
    config: Annotated[Path, typer.Option(help="The YAML whose tiers are measured.")],
    model: Annotated[
        Path | None, typer.Option(help="A model's directory: its chunk size is the one in use.")
    ] = None,
    nbytes: Annotated[str, typer.Option(help="Bytes of each point.")] = "256MiB",
    fio_seconds: Annotated[
        float, typer.Option(help=f"Of each of fio's {fio.POINTS} points; 0: without fio.")
    ] = 1.0,
    html: Annotated[Path | None, typer.Option(help="Write a report with heat maps here.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the YAML with what is recommended here.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure latency and bandwidth of every tier, and recommend threads, depth and chunk size."""
    if not config.is_file():
        raise ConfigError(f"{config}: not a file")
    loaded = load(config)
    text = config.read_text()
    use = _in_use(loaded, model)
    size, seconds = read(parse_room, nbytes, "--nbytes"), _seconds(fio_seconds)
    check_writable(html, output, json_file)
    refuse_small(loaded, use.nbytes)
    found = Found()
    try:
        with Console(stderr=True).status("dram") as status:  # where somebody watches
            examine(loaded, use.nbytes, size, found, status)
            if output:
                save(output, tuned(text, found.advice, use))
            examine_disks(loaded, seconds, found, status)
    finally:
        _print(console_beside(json_file, soft_wrap=True), found, use)
        save_json(json_file, *_lines(found))
    if html:
        wanted = recommended(found.advice, use) if found.advice else ""
        machine = f"{platform.node()}, Linux {platform.release()}"
        save(html, render(found.points, found.disks, wanted, machine))
    for file in filter(None, (html, output)):
        typer.echo(f"{file}: written", err=json_file == STDOUT)


def examine(config: Config, in_use: int, nbytes: int, found: Found, status: Status) -> None:
    """Measure every tier: by chunk size and depth, by threads at the chunk size in use, and as is recommended then.

    Raises:
        ConfigError: a tier cannot be opened.
        TierError: an operation failed.
    """
    if asked := [tier.name for tier in config.tiers[1:] if is_asked(tier.kind)]:
        raise ConfigError(f"{asked[0]}: a store that engines share is not measured; leave it out")
    found.points += measure_dram(config.tiers[0], in_use, nbytes)
    now = config.io.threads
    for tier in config.tiers[1:]:
        run = partial(_run, found, status, tier, nbytes)
        for chunk in sorted({*_CHUNKS, in_use}):
            if _fits(tier, chunk):
                run(chunk, now, _DEPTHS)
        for threads in _THREADS:
            if threads != now:
                run(in_use, threads, _DEPTHS[-1:])
        choice = choose([point for point in found.points if point.tier == tier.name], now)
        as_chosen = run(choice.chunk_nbytes, choice.threads, (1, choice.depth))
        found.advice.append(confirmed(choice, as_chosen))


def examine_disks(config: Config, fio_s: float, found: Found, status: Status) -> None:
    """Run fio on the disks of file tiers, so many seconds at each point."""
    for tier in config.tiers[1:]:
        path = tier.options.get("path")
        if fio_s and fio.installed() and isinstance(path, str):
            status.update(f"{tier.name}: fio, {fio.POINTS} times {fio_s:g} s")
            assert tier.capacity is not None
            found.disks[tier.name] = fio.characterise(Path(path), fio_s, capacity=tier.capacity)


def _run(
    found: Found,
    status: Status,
    tier: TierConfig,
    nbytes: int,
    chunk_nbytes: int,
    threads: int,
    depths: Sequence[int],
) -> list[Point]:
    status.update(f"{tier.name}: chunks of {format_nbytes(chunk_nbytes)}, {threads} threads")
    points = measure(tier, chunk_nbytes, threads=threads, depths=depths, nbytes=nbytes)
    found.points += points
    return points


def refuse_small(config: Config, chunk_nbytes: int) -> None:
    """Raise a ConfigError for the first tier in which nothing could be measured."""
    for index, tier in enumerate(config.tiers):
        if not _fits(tier, chunk_nbytes, below=bool(index)):
            held = format_nbytes(tier.capacity or 0)
            raise ConfigError(
                f"tiers[{index}].capacity: {held} has no room for {2 if index else 1} x "
                f"{format_nbytes(chunk_nbytes)}, a chunk: nothing could be measured"
            )


def _fits(tier: TierConfig, chunk_nbytes: int, *, below: bool = True) -> bool:
    least = 2 * (chunk_nbytes + PAGE) if below else chunk_nbytes
    return tier.capacity is None or tier.capacity >= least


def _seconds(given: float) -> float:
    if not 0 <= given <= _MOST_FIO_S:
        raise ConfigError(f"--fio-seconds: {given:g} is not from 0 to {_MOST_FIO_S:g}")
    return given


def _in_use(config: Config, model: Path | None) -> Chunk:
    """Size a chunk; of no model in particular it has no tokens."""
    if model is None:
        return Chunk(0, TARGET_NBYTES, TARGET_NBYTES, TARGET_NBYTES + PAGE)
    return chunk_of(config, read_geometry(model, ranks=1), BLOCK, 1)


def _lines(found: Found) -> list[dict[str, object]]:
    """List all that was measured; each entry says what it is."""
    lines: list[dict[str, object]] = [{"result": "tier", **p._asdict()} for p in found.points]
    for name, disk in found.disks.items():
        lines += [{"result": "fio", "tier": name, **cell._asdict()} for cell in disk.cells]
        lines += [{"result": "fio refused", "tier": name, "why": why} for why in disk.refused]
    lines += [{"result": "advice", **each._asdict()} for each in found.advice]
    return lines


def _print(console: Console, found: Found, use: Chunk) -> None:
    table = Table(*HEADS)
    for point in found.points:
        table.add_row(*point.cells())
    console.print(table)
    for name, disk in found.disks.items():
        if disk.cells:
            best = max(disk.cells, key=lambda cell: cell.gb_s)
            console.print(
                f"{escape(name)}: the disk alone, by fio: up to {best.gb_s:.2f} GB/s ({best.mix}, "
                f"{best.engine}, blocks of {format_nbytes(best.block_nbytes)}, depth {best.depth})"
            )
        for why in disk.refused[:1]:
            more = f"; {len(disk.refused) - 1} more" if len(disk.refused) > 1 else ""
            console.print(f"{escape(name)}: fio refused {escape(why)}{more}")
    if not fio.installed():
        console.print("fio is not installed (Debian package fio): the disk alone was not measured")
    for each in found.advice:
        console.print(
            f"{escape(each.tier)}: {each.threads} threads, {each.depth} at a time, chunks of "
            f"{format_nbytes(each.chunk_nbytes)}: {each.read_gb_s:.2f} GB/s read; one alone "
            f"{each.latency_s * 1e3:.2f} ms"
        )
    if found.advice:
        console.print("recommended, in the YAML:\n")
        console.print(escape(recommended(found.advice, use)))
