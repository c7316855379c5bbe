"""`kvtier top` and `kvtier status`: what kvtier does in running servers."""

import time
from collections import deque
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kvtier.cli.outputs import JsonFile, check_writable, console_beside, save_json
from kvtier.errors import KvtierError, one_line
from kvtier.top.facts import Facts, facts
from kvtier.top.scrape import Scrape, fetch
from kvtier.top.screen import screen, words

_WINDOW_S = 60.0

Urls = Annotated[
    list[str], typer.Argument(help="Servers, such as localhost:8000.", show_default=False)
]


class Seen:
    """The scrapes of one server of the last minute, or why there is none."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.why = ""
        self._scrapes: deque[Scrape] = deque()

    def look(self) -> None:
        """Scrape it now."""
        try:
            self._scrapes.append(fetch(self.address))
            self.why = ""
        except KvtierError as exc:
            self.why = str(exc)
        while len(self._scrapes) > 2 and self._scrapes[-1].at - self._scrapes[1].at > _WINDOW_S:
            self._scrapes.popleft()

    def facts(self, *, whole: bool = False) -> Facts | None:
        """Say what the last minute, or the `whole` life of the server, was; rates are of the last two scrapes."""
        if self.why or not self._scrapes:
            return None
        *before, now = self._scrapes
        first = before[0] if before and not whole else None
        return facts(now, first, before[-1] if before else None)


def top(
    urls: Urls,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[
        bool, typer.Option(help="Look twice, print it, and end; so it is without a terminal.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Show what kvtier does in servers: hits by tier, what they are worth, waits, and what is wrong."""
    seen = [Seen(url) for url in urls]
    check_writable(json_file)
    console = console_beside(json_file)
    if once or json_file or not console.is_terminal:
        _twice(seen, interval)
        _report(seen, console, json_file)
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            for each in seen:
                each.look()
            live.update(_screens(seen, console.width), refresh=True)
            time.sleep(interval)


def status(urls: Urls) -> None:
    """Say in words what kvtier did in servers since they started; exit status 1 if one is not well, 2 if one does not answer."""
    seen = [Seen(url) for url in urls]
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


def _twice(seen: list[Seen], interval: float) -> None:
    for each in seen:
        each.look()
    time.sleep(interval)
    for each in seen:
        each.look()


def _report(seen: list[Seen], console: Console, json_file: Path | None) -> None:
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


def _screens(seen: list[Seen], width: int) -> RenderableType:
    shown: list[RenderableType] = []
    for each in seen:
        found = each.facts()
        if found is None:
            shown.append(Text(f"{one_line(each.why)}; asked again and again, ^C ends", "bold red"))
        else:
            shown.append(screen(each.address, found, width))
        shown.append(Text(""))
    return Group(*shown)
