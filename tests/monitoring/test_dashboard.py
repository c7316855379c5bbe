"""The shipped dashboard and what goes with it; that its panels have data, a real server says in tests/engine."""

import subprocess

import yaml

from tests.monitoring import dashboard
from tests.monitoring.prometheus import ALERTS, needs_prometheus

FOLDER = ALERTS.parent


def test_the_file_is_what_the_panels_make_of_it() -> None:
    assert dashboard.FILE.read_text() == dashboard.text()


def test_panels_lie_beside_each_other_and_not_on_each_other() -> None:
    cells = set[tuple[int, int]]()
    for panel in dashboard.dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        taken = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        cells |= taken


@needs_prometheus
def test_prometheus_takes_its_configuration() -> None:
    command = ["promtool", "check", "config", str(FOLDER / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_compose_mounts_is_there() -> None:
    for service in yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"].values():
        for volume in service["volumes"]:
            assert (FOLDER / volume.split(":")[0]).exists()
