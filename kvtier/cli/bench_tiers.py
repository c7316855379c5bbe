"""`kvtier bench tiers`: measure every configured tier, on the machine that it is configured for."""

import platform
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import yaml
from rich.console import Console
from rich.table import Table

from kvtier.chunking import LIMIT_TOKENS, TARGET_NBYTES
from kvtier.cli.geometry import read_geometry
from kvtier.cli.room import PAGE, Chunk, chunk_of
from kvtier.config import Config, load
from kvtier.measure import fio, page
from kvtier.measure.advice import Advice, advise
from kvtier.measure.tiers import Point, measure, measure_dram
from kvtier.units import format_nbytes, parse_nbytes

_CHUNKS = (512 << 10, 1 << 20, 2 << 20, 4 << 20)
_THREADS = (2, 4, 8, 16)
_DEPTHS = (1, 8, 32)
_BLOCK = 16  # tokens of vLLM's block


def tiers(
    config: Annotated[Path, typer.Option(help="The YAML whose tiers are measured.")],
    model: Annotated[
        Path | None, typer.Option(help="A model's directory: its chunk size is the one in use.")
    ] = None,
    nbytes: Annotated[str, typer.Option(help="Bytes of each point.")] = "256MiB",
    fio_seconds: Annotated[float, typer.Option(help="Of each point of fio; 0: without fio.")] = 1.0,
    html: Annotated[Path | None, typer.Option(help="Write a report with heat maps here.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the YAML with what is recommended here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead.")] = False,
) -> None:
    """Measure latency and bandwidth of every tier, and recommend threads, depth and chunk size."""
    loaded = load(config)
    use = _in_use(loaded, model)
    points = sweep(loaded, use.nbytes, parse_nbytes(nbytes))
    of_tier = {tier.name: [p for p in points if p.tier == tier.name] for tier in loaded.tiers[1:]}
    advice = [advise(found, loaded.io.threads) for found in of_tier.values()]
    disks = _fio(loaded, fio_seconds)
    if as_json:
        _print_json(points, disks, advice)
    else:
        _print(points, advice)
    if html:
        html.write_text(
            page.render(points, disks, f"{platform.node()}, Linux {platform.release()}")
        )
    if output:
        output.write_text(rewritten(config.read_text(), advice, use))


def sweep(config: Config, in_use: int, nbytes: int) -> list[Point]:
    """Measure every tier: by chunk size and depth, then by threads at the chunk size in use.

    Raises:
        ConfigError: a tier cannot be opened.
        TierError: an operation failed.
    """
    points = measure_dram(config.tiers[0], in_use, nbytes)
    now = config.io.threads
    for tier in config.tiers[1:]:
        for chunk in sorted({*_CHUNKS, in_use}):
            points += measure(tier, chunk, threads=now, depths=_DEPTHS, nbytes=nbytes)
        for threads in _THREADS:
            if threads != now:
                deep = _DEPTHS[-1:]
                points += measure(tier, in_use, threads=threads, depths=deep, nbytes=nbytes)
    return points


def rewritten(text: str, advice: list[Advice], use: Chunk) -> str:
    """Put what was found into a configuration: for each tier, and what the most demanding wants; comments are lost."""
    raw = yaml.safe_load(text)
    for tier, each in zip(raw.get("tiers", [])[1:], advice, strict=True):
        tier["depth"] = max(2, min(each.depth, each.threads))
        tier["medium"] = {
            "read": format_nbytes(each.medium.read),
            "write": format_nbytes(each.medium.write),
            "latency": f"{max(0.01, each.medium.latency_s * 1e3):.2f}ms",
        }
    if advice:
        others = len(advice) - 1  # a thread is kept for each
        raw.setdefault("io", {})["threads"] = max(each.threads for each in advice) + others
    if advice and use.tokens:
        wanted = max(each.chunk_nbytes for each in advice)
        blocks = round(wanted * use.tokens / use.nbytes / _BLOCK)
        raw["chunk_tokens"] = _BLOCK * max(1, min(blocks, LIMIT_TOKENS // _BLOCK))
    text = yaml.safe_dump(raw, sort_keys=False, default_flow_style=None, width=100)
    return str(text)


def _in_use(config: Config, model: Path | None) -> Chunk:
    """Size a chunk; of no model in particular it has no tokens."""
    if model is None:
        return Chunk(0, TARGET_NBYTES, TARGET_NBYTES, TARGET_NBYTES + PAGE)
    return chunk_of(config, read_geometry(model, ranks=1), _BLOCK)


def _fio(config: Config, seconds: float) -> dict[str, list[fio.Cell]]:
    found: dict[str, list[fio.Cell]] = {}
    for tier in config.tiers[1:]:
        path = tier.options.get("path")
        if seconds and fio.installed() and isinstance(path, str):
            found[tier.name] = list(fio.characterise(Path(path), seconds))
    return found


def _print_json(
    points: list[Point], disks: dict[str, list[fio.Cell]], advice: list[Advice]
) -> None:
    lines: list[dict[str, object]] = [{"result": "tier", **p._asdict()} for p in points]
    for name, cells in disks.items():
        lines += [{"result": "fio", "tier": name, **cell._asdict()} for cell in cells]
    lines += [{"result": "advice", **each._asdict()} for each in advice]
    for line in lines:
        typer.echo(msgspec.json.encode(line).decode())


def _print(points: list[Point], advice: list[Advice]) -> None:
    console = Console(highlight=False)
    table = Table("tier", "chunk", "threads", "depth", "way", "GB/s", "median ms", "p99 ms")
    for p in points:
        sizes = (format_nbytes(p.chunk_nbytes), str(p.threads), str(p.depth), p.way)
        speeds = (f"{p.gb_s:.2f}", f"{p.median_s * 1e3:.2f}", f"{p.p99_s * 1e3:.2f}")
        table.add_row(p.tier, *sizes, *speeds)
    console.print(table)
    for each in advice:
        console.print(
            f"{each.tier}: io.threads {each.threads}, {each.depth} reads at a time, chunks of "
            f"{format_nbytes(each.chunk_nbytes)}: {each.read_gb_s:.2f} GB/s; one read alone "
            f"{each.latency_s * 1e3:.2f} ms"
        )
    if not fio.installed():
        console.print("fio is not installed (Debian package fio): the disk alone was not measured")
