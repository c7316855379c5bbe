"""The pages for operators name every alert and every reason; what is deployed is what kvtier takes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvtier.brain.why import OF_ASKED_TIERS, Why
from kvtier.config import parse

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()


def first_cells(section: str) -> set[str]:
    """Give the words in the first column of the tables of a section."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))


def test_every_alert_has_its_row() -> None:
    (group,) = yaml.safe_load((ROOT / "monitoring/alerts.yml").read_text())["groups"]
    assert first_cells("Alerts") == {rule["alert"] for rule in group["rules"]}


def test_every_reason_has_its_row() -> None:
    assert first_cells("Why was it not a hit?") == {*Why} - OF_ASKED_TIERS


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


@pytest.mark.parametrize("page", ["README.md", "docs/README.md", "docs/operations.md"])
def test_no_link_leads_nowhere(page: str) -> None:
    file = ROOT / page
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text())
    assert links
    assert [each for each in links if "://" not in each and not (file.parent / each).exists()] == []


def test_what_is_deployed_starts_kvtier() -> None:
    settings, server, _ = manifests()
    config = parse.parse(yaml.safe_load(settings["data"]["kvtier.yaml"]), here=False)
    (container,) = server["spec"]["template"]["spec"]["containers"]
    (flag,) = (each for each in container["args"] if each.startswith("--kv-transfer-config="))
    transfer = json.loads(flag.partition("=")[2])
    assert transfer["kv_connector"] == "KVTierConnector"
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert transfer["kv_connector_extra_config"]["kvtier"] == f"{mounts['kvtier']}/kvtier.yaml"
    assert str(config.tiers[1].options["path"]).startswith(f"{mounts['kv']}/")
    volumes = {each["name"] for each in server["spec"]["template"]["spec"]["volumes"]}
    assert volumes == mounts.keys()


def test_every_metric_is_one_of_ours() -> None:
    named = set(re.findall(r"kvtier:(\w+)", PAGE))
    known = set(re.findall(r"`kvtier:(\w+)", (ROOT / "docs/metrics.md").read_text()))
    assert {name for name in named if name.removesuffix("_total") not in known} == set()
