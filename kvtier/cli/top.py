"""`kvtier top` and `kvtier status`: what kvtier does in running servers."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kvtier.cli.outputs import JsonFile, check_writable, console_beside, save, save_json
from kvtier.errors import ConfigError, KvtierError, one_line
from kvtier.page.document import document
from kvtier.top.history import History
from kvtier.top.live import LivePage
from kvtier.top.report import TITLE, body
from kvtier.top.screen import screen, words
from kvtier.units import parse_seconds

Urls = Annotated[
    list[str], typer.Argument(help="Servers, such as localhost:8000.", show_default=False)
]


def top(  # noqa: PLR0913 - a command's options are its arguments
    urls: Urls,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[
        bool, typer.Option(help="Look twice, print it, and end; so it is without a terminal.")
    ] = False,
    json_file: JsonFile = None,
    html: Annotated[
        Path | None, typer.Option(help="Write what is seen as plots here, at the end.")
    ] = None,
    lasts: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="How long, as 60s; else until ^C.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show a live page to this machine's browser.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0: a free one.")] = 8077,
) -> None:
    """Show what kvtier does in servers: hits by tier, what they are worth, waits, and what is wrong."""
    histories = [History(url) for url in urls]
    if sum(map(bool, (html, serve, json_file))) > 1:
        raise ConfigError("--html, --serve and --json: one of them at a time")
    check_writable(html, json_file)
    console = console_beside(json_file)
    span_s = _seconds(lasts)
    if html is not None:
        _record(histories, interval, span_s, html, console)
    elif serve:
        _serve(histories, interval, span_s, port)
    elif once or json_file or not console.is_terminal:
        _twice(histories, interval)
        _report(histories, console, json_file)
    else:
        _look(histories, interval, span_s, console)


def status(urls: Urls) -> None:
    """Say in words what kvtier did in servers since they started; exit status 1 if one is not well, 2 if one does not answer."""
    seen = [History(url) for url in urls]
    worst = 0
    for each in seen:
        each.look()
        found = each.facts(whole=True)
        if found is None:
            typer.echo(f"kvtier: {each.why}", err=True)
            worst = 2
        else:
            typer.echo(words(each.address, found))
            worst = max(worst, int(found.off or any(tier.resting for tier in found.tiers)))
    raise typer.Exit(worst)


def _seconds(lasts: str | None) -> float:
    """Read `--for`."""
    try:
        return inf if lasts is None else parse_seconds(lasts)
    except ValueError as exc:
        raise ConfigError(f"--for: {exc}") from exc


def _record(
    histories: list[History], interval: float, span_s: float, html: Path, console: Console
) -> None:
    """Look until the time is over or ^C, then write the page of it."""
    with suppress(KeyboardInterrupt):
        _look(histories, interval, span_s, console)
    if not any(each.steps for each in histories):
        why = next((each.why for each in histories if each.why), "nothing was seen in this time")
        raise KvtierError(f"{why}; {html} is not written")
    save(html, document(TITLE, body(histories), columns=True))
    typer.echo(f"report: {html}")


def _serve(histories: list[History], interval: float, span_s: float, port: int) -> None:
    """Look, and show it to a browser, until the time is over or ^C."""
    with LivePage(port, histories, interval) as server:
        thread = threading.Thread(target=server.serve_forever, name="kvtier-top-page", daemon=True)
        thread.start()
        typer.echo(f"{server.url} shows it; ^C ends")
        try:
            for _ in _looks(histories, interval, span_s):
                pass
        finally:
            server.shutdown()


def _look(histories: list[History], interval: float, span_s: float, console: Console) -> None:
    """Look until the time is over, and show it where there is a terminal."""
    with _shown(histories, console) as show:
        for _ in _looks(histories, interval, span_s):
            show()


@contextmanager
def _shown(histories: list[History], console: Console) -> Iterator[Callable[[], None]]:
    if not console.is_terminal:
        yield lambda: None
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda: live.update(_screens(histories, console.width), refresh=True)


def _looks(histories: list[History], interval: float, span_s: float) -> Iterator[None]:
    """Look, at every interval and at the end of the time."""
    end = time.monotonic() + span_s
    while True:
        for each in histories:
            each.look()
        yield
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(interval, left))


def _twice(seen: list[History], interval: float) -> None:
    for each in seen:
        each.look()
    time.sleep(interval)
    for each in seen:
        each.look()


def _report(seen: list[History], console: Console, json_file: Path | None) -> None:
    told = []
    for each in seen:
        found = each.facts(whole=True)
        if found is None:
            typer.echo(f"kvtier: {each.why}", err=True)
        else:
            told.append({"url": each.address} | msgspec.to_builtins(found))
            console.print(screen(each.address, found, console.width))
    save_json(json_file, *told)
    if len(told) < len(seen):
        raise typer.Exit(1)


def _screens(seen: list[History], width: int) -> RenderableType:
    shown: list[RenderableType] = []
    for each in seen:
        found = each.facts()
        if found is None:
            shown.append(Text(f"{one_line(each.why)}; asked again and again, ^C ends", "bold red"))
        else:
            shown.append(screen(each.address, found, width))
        shown.append(Text(""))
    return Group(*shown)
