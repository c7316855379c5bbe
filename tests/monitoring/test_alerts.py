"""The shipped alerts, by Prometheus itself: what fails for the first time is an increase, and fires."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from kvtier.brain.stats import CacheStats, TierStats
from kvtier.types import OpStatus
from tests.monitoring.prometheus import ALERTS, Prometheus, needs_prometheus
from tests.patience import until

SCENES = Path(__file__).with_name("alerts_test.yml")

breathe = partial(time.sleep, 0.2)


@needs_prometheus
def test_promtool_takes_the_rules_and_their_scenes(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes.yml"
    scenes.write_text(SCENES.read_text().replace("RULES", str(ALERTS)))
    for command in (["check", "rules", str(ALERTS)], ["test", "rules", str(scenes)]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Exposition(BaseHTTPRequestHandler):
    """What vLLM's own endpoint answers."""

    def do_GET(self) -> None:
        from prometheus_client import REGISTRY, generate_latest

        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        self.wfile.write(generate_latest(REGISTRY))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def registered() -> Iterator[Any]:
    """vLLM's own metrics of the connector; they are taken back afterwards."""
    pytest.importorskip("vllm")
    from prometheus_client import REGISTRY, Counter, Gauge, Histogram

    from kvtier.connectors.vllm.connector import KVTierConnector

    before = set(REGISTRY._collector_to_names)
    transfer = SimpleNamespace(kv_connector_extra_config={})
    kinds: Any = {Gauge: Gauge, Counter: Counter, Histogram: Histogram}
    config: Any = SimpleNamespace(kv_transfer_config=transfer)
    yield KVTierConnector.build_prom_metrics(config, kinds, ["engine"], {0: ["0"]})
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


@needs_prometheus
def test_the_first_failures_of_a_tier_are_an_increase_and_fire(
    registered: Any, tmp_path: Path
) -> None:
    from kvtier.connectors.vllm.metrics import Meter

    meter, nvme = Meter(), TierStats(name="nvme")
    stats = CacheStats(tiers=(TierStats(name="dram"), nvme))

    def tell() -> None:
        told = meter.collect(stats)
        assert told is not None
        registered.observe(told.data, 0)

    with ExitStack() as stack:
        scraped = ThreadingHTTPServer(("127.0.0.1", 0), Exposition)
        stack.callback(scraped.server_close)
        stack.callback(scraped.shutdown)
        Thread(target=scraped.serve_forever, daemon=True).start()
        prometheus = Prometheus(tmp_path, scraped.server_port, stack)
        tell()
        failures = 'kvtier:tier_failures_total{tier="nvme", cause="error"}'
        until(lambda: prometheus.ask(failures) != {}, "a first scrape", breathe)
        assert prometheus.ask(failures) == {"nvme error": 0}
        assert prometheus.ask("kvtier:off") == {"": 0}
        assert prometheus.ask('ALERTS{alertstate="firing"}') == {}
        time.sleep(2)  # a second one
        nvme.failures[OpStatus.ERROR] += 5
        nvme.trips += 1
        tell()
        grown = f"increase({failures}[1m])"
        until(
            lambda: prometheus.ask(grown).get("nvme error", 0) >= 5,
            "five failures",
            breathe,
        )
        assert prometheus.ask("increase(kvtier:tier_trips_total[1m])")["nvme"] >= 1
        firing = 'ALERTS{alertstate="firing"}'
        until(
            lambda: prometheus.ask(firing) == {"KVTierTierFails nvme error": 1},
            "the alert",
            breathe,
        )
