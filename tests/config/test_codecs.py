"""`codec:` in the YAML: one codec, a list of stages, a short name; and what does not go together."""

import pytest

from kvtier.config.codecs import codec
from kvtier.errors import ConfigError


def kinds(raw: object) -> list[object]:
    options = codec(raw, "codec")["options"]
    assert isinstance(options, dict)
    return [stage["kind"] for stage in options["stages"]]


def test_one() -> None:
    assert codec("raw", "codec") == {"kind": "raw", "options": {}}


def test_stages() -> None:
    given = codec(["planes", {"kind": "lz4"}], "codec")
    assert given["kind"] == "pipeline"
    assert kinds(["planes", {"kind": "lz4"}]) == ["planes", "lz4"]


def test_a_short_name_is_written_out_and_options_go_to_its_first_stage() -> None:
    assert kinds("lossless") == ["planes", "zstd"]
    short = codec({"kind": "lossless", "split": "bytes"}, "codec")
    assert "'split': 'bytes'" in str(short)


def test_a_choice() -> None:
    given = codec({"budget_ms": 5, "among": ["lz4", "lossless"]}, "codec")
    assert given["kind"] == "budget"
    options = given["options"]
    assert isinstance(options, dict)
    assert [each["kind"] for each in options["among"]] == ["lz4", "pipeline"]
    assert options["budget_ms"] == 5


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "codec: a list of 1 to 8 stages, not 0"),
        (["zstd"] * 9, "codec: a list of 1 to 8 stages, not 9"),
        ("losless", r"codec: unknown codec 'losless' \(did you mean 'lossless'\?\)"),
        (["planes", "ztsd"], r"codec\[1\]: unknown codec 'ztsd' \(did you mean 'zstd'\?\)"),
        (["planes", {"kind": "zstd", "lvel": 3}], r"codec\[1\].lvel: unknown key \(did you mean"),
        (["raw", "zstd"], r"codec\[0\]: 'raw' is not a stage"),
        (["zstd", "planes"], r"codec\[1\]: 'planes' only rearranges; let zstd or lz4 follow it"),
        (["planes", "quantise", "zstd"], r"codec\[1\]: 'quantise' reads heads and tokens, so it"),
        ("pipeline", r"codec: write the stages as a list, \[planes, zstd\] for example"),
        ({"kind": "lossless", "lvel": 1}, r"codec\[0\].lvel: unknown key"),
        ({"budget_ms": 5}, r"codec.among: a list of at least two codecs"),
        ({"budget_ms": 0, "among": ["lz4", "zstd"]}, r"codec.budget_ms: expected a number > 0"),
        ({"budget_ms": 5, "amnog": ["lz4", "zstd"]}, r"codec.among: a list"),
        ({"budget_ms": 5, "among": ["lz4", "zsdt"]}, r"codec.among\[1\]: unknown codec 'zsdt'"),
        (3, "codec"),
    ],
)
def test_mistakes_are_named(raw: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        codec(raw, "codec")
