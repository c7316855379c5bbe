"""The JSON Schema of the YAML: what the parser takes, it takes; the mistakes that an editor can see, it sees."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kvtier.config import parse
from kvtier.config.schema import schema
from kvtier.config.structs import Config
from kvtier.registry import KINDS, TIER, names

ROOT = Path(__file__).parents[2]
DRAM = {"name": "dram", "kind": "dram", "capacity": "1GiB"}
FILE = {"kind": "file", "path": "/kv", "capacity": "1GiB"}


@pytest.fixture(scope="module")
def validator() -> Any:
    made = jsonschema.Draft202012Validator(schema())
    made.check_schema(made.schema)
    return made


def blocks() -> list[str]:
    """Give what README and examples show."""
    shown = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return shown + [file.read_text() for file in sorted(ROOT.glob("examples/*.yaml"))]


def tiers(*lower: dict[str, Any], **dram: Any) -> dict[str, Any]:
    return {"tiers": [{**DRAM, **dram}, *lower]}


@pytest.mark.parametrize("text", blocks())
def test_what_is_shown_is_valid(validator: Any, text: str) -> None:
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in ("eviction", "admission", "codec") for n in names(k)]
)
def test_every_plugin_by_its_name_and_as_a_mapping(validator: Any, kind: str, name: str) -> None:
    for written in (name, {"kind": name}):
        raw = tiers({**FILE, kind: written})
        try:
            parse.parse(raw, here=False)
        except ValueError:  # needs options, or is no codec by itself
            continue
        validator.validate(raw)


@pytest.mark.parametrize(
    "raw",
    [
        tiers(capacity="auto", numa="auto"),
        tiers(capacity=None, numa=0, medium={"read": "25GiB"}),
        tiers({**FILE, "codec": ["planes", {"kind": "zstd", "level": 3}]}),
        tiers({**FILE, "codec": {"budget_ms": 10, "among": [["planes", "lz4"], "lossless"]}}),
        tiers({**FILE, "codec": {"kind": "int8", "rotate": True}}),
        tiers({**FILE, "deadline": 2, "depth": "auto", "medium": None}),
        {"max_wait": 1.5, "chunk_tokens": "auto", "trace": None, "hooks": {"budget": "1ms"}},
        {"trace": {"record": "/var/log/t.jsonl"}, "replay": {"prefill_knee": "24k"}},
    ],
)
def test_what_the_parser_takes_is_valid(validator: Any, raw: dict[str, Any]) -> None:
    validator.validate(raw)


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ({"chunk_token": 64}, "$"),
        ({"store": "promt"}, "$.store"),
        ({"max_wait": "long"}, "$.max_wait"),
        ({"io": {"threads": 1}}, "$.io.threads"),
        ({"tiers": []}, "$.tiers"),
        (tiers(capacity="64G"), "$.tiers[0]"),
        (tiers(capcity="1GiB"), "$.tiers[0]"),
        (tiers(codec="zstd"), "$.tiers[0]"),
        (tiers(eviction="arcc"), "$.tiers[0]"),
        (tiers(eviction={"kind": "arc", "ghost": 2}), "$.tiers[0]"),
        (tiers({**FILE, "write": "idel"}), "$.tiers[1]"),
        (tiers({"kind": "file", "capacity": "1GiB"}), "$.tiers[1]"),
        (tiers({"kind": "fil", "path": "/kv", "capacity": "1GiB"}), "$.tiers[1]"),
        (tiers({**FILE, "codec": ["planes", "zst"]}), "$.tiers[1]"),
    ],
)
def test_a_mistake_is_seen(validator: Any, raw: dict[str, Any], place: str) -> None:
    assert [error.json_path for error in validator.iter_errors(raw)] == [place]


def test_every_key_is_described() -> None:
    top = schema()["properties"]
    assert {*top} == {name.removesuffix("_s") for name in Config.__struct_fields__}
    assert len(top["tiers"]["items"]["anyOf"]) == len(TIER) + 2  # dram, and another's
    kinds = top["tiers"]["items"]["anyOf"]
    shown = [*top.values(), *(each for kind in kinds for each in kind["properties"].values())]
    assert all(each.get("description") for each in shown)
    assert {*KINDS} - {"tier"} <= {*schema()["$defs"]}
