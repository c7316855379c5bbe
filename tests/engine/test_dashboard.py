"""A real Prometheus scrapes a real server under traffic: every panel has data, no alert fires, the books agree."""

import math
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from kvtier.demo.client import complete, metrics
from kvtier.demo.server import ServerConfig
from kvtier.top.scrape import read
from tests.engine.conftest import ServerFactory
from tests.engine.models import prompts
from tests.engine.scenarios import nvme
from tests.monitoring.dashboard import PANELS
from tests.monitoring.prometheus import Prometheus, needs_prometheus
from tests.patience import HANG_S, until

LONG = prompts(4, 1500, seed=61)
SAMPLED = {"Age of chunks that leave, median", "Evicted too early, median gap"}
"""Panels of one chunk in 64: a short test may see none."""

breathe = partial(time.sleep, 0.5)


def filled(expression: str) -> str:
    """Fill in what Grafana fills in."""
    for name, value in {
        "$engine": ".*",
        "$instance": ".*",
        "$__rate_interval": "1m",
        "$__range": "5m",
    }.items():
        expression = expression.replace(name, value)
    return expression


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvtier.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)


@needs_prometheus
def test_every_panel_has_data_and_nothing_fires(
    serve: ServerFactory, llama: Path, tmp_path: Path
) -> None:
    kvtier = nvme(tmp_path / "nvme", dram_capacity="10MiB")
    server = serve(ServerConfig(model=llama, blocks=20, max_tokens=2304, kvtier=kvtier))
    with ExitStack() as stack:
        prometheus = Prometheus(tmp_path, server.port, stack)
        until(lambda: prometheus.ask("kvtier:off") == {"": 0}, "a first scrape", breathe)
        for _ in range(4):
            for prompt in LONG:
                complete(server.port, prompt, 2)
        stored = "sum(kvtier:prompt_tokens_total)"
        until(lambda: prometheus.ask(stored) == {"": 16 * 1500}, "the last scrape", breathe)
        empty = []
        for panel in PANELS:
            for expression in panel.expressions:
                values = [float(each["value"][1]) for each in prometheus.series(filled(expression))]
                seen = values if panel.title in SAMPLED else [v for v in values if math.isfinite(v)]
                empty += [] if seen else [panel.title]
        assert empty == []
        assert prometheus.ask('ALERTS{alertstate="firing"}') == {}
    text = metrics(server.port)
    theirs = sum(
        float(line.split()[1])
        for line in text.splitlines()
        if line.startswith("vllm:prompt_tokens_total")
    )
    assert read(text).total("prompt_tokens_total") == theirs
    began = time.perf_counter()
    metrics(server.port)
    assert time.perf_counter() - began < 1, "a scrape takes milliseconds, on a busy machine more"
    shown = run("top", f"127.0.0.1:{server.port}", "--once", "--interval", "0.5")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "24k prompt tokens" in shown.stdout
    assert "nothing failed" in shown.stdout
    page = tmp_path / "top.html"
    url = f"127.0.0.1:{server.port}"
    recorded = run("top", url, "--html", str(page), "--for", "1s", "--interval", "0.5")
    assert (recorded.returncode, recorded.stderr) == (0, "")
    assert page.read_text().count("<figure") == 9
    assert run("status", f"127.0.0.1:{server.port}").returncode == 0
