"""Debian's Prometheus, for tests of what it makes of our metrics."""

import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from kvtier.demo.server import free_port

ALERTS = Path(__file__).parents[2] / "monitoring" / "alerts.yml"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs Debian's prometheus",
)


class Prometheus:
    """A real one, that scrapes a port of this machine every second; it ends with `stack`."""

    def __init__(self, folder: Path, port: int, stack: ExitStack) -> None:
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [
                {
                    "job_name": "vllm",
                    "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self._at = f"127.0.0.1:{free_port()}"
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._at}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)

    def ask(self, query: str) -> dict[str, float]:
        """Answer a query: the values, by alert, tier and cause; nothing while it starts."""
        labels = ("alertname", "tier", "cause")
        return {
            " ".join(filter(None, map(each["metric"].get, labels))): float(each["value"][1])
            for each in self.series(query)
        }

    def series(self, query: str) -> list[dict[str, Any]]:
        """Answer a query as Prometheus does: each series with its labels and value; nothing while it starts."""
        try:
            url = f"http://{self._at}/api/v1/query?{urlencode({'query': query})}"
            found: list[dict[str, Any]] = json.load(urlopen(url, timeout=5))["data"]["result"]
        except OSError:
            return []
        return found
