"""Whatever is written, the answer is a configuration or a `ConfigError`: never another exception."""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from kvtier.config import digest, from_builtins, load, to_builtins
from kvtier.errors import ConfigError

KEYS = (
    *("tiers", "kind", "name", "capacity", "numa", "eviction", "codec", "write", "deadline", "io"),
    *("path", "wrappers", "prefetch", "threads", "idle_write", "chunk_tokens", "store", "level"),
)
WORDS = (
    "dram",
    "file",
    "lru",
    "zstd",
    "auto",
    "idle",
    "1GiB",
    "2s",
    "/var/tmp/x",
    "slow",
    "a:b",
    ":",
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(WORDS),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)
TIERS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["dram", "file"])},
    optional={key: VALUES for key in KEYS if key != "kind"},
)


def loads_or_refuses(raw: object) -> None:
    with contextlib.suppress(ConfigError):
        config = load(raw)  # type: ignore[arg-type] # whatever is written
        assert digest(from_builtins(to_builtins(config))) == digest(config)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_mapping(raw: dict[str, object]) -> None:
    loads_or_refuses(raw)


@given(st.lists(TIERS, min_size=1, max_size=3))
@example([{"kind": "dram"}, {"kind": "file", "path": "/var/tmp/\0", "capacity": "1MiB"}])
def test_any_tiers(tiers: list[dict[str, object]]) -> None:
    loads_or_refuses({"tiers": tiers})


@pytest.mark.parametrize(
    "text",
    [
        "? [a]\n: 1\n",
        "&a [*a]",
        "&a {tiers: *a}",
        "<<: {store: all}",
        "!!python/object:os.system x",
        "\t",
    ],
)
def test_odd_yaml(text: str, tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text(text)
    with contextlib.suppress(ConfigError):
        load(file)


@given(st.text(max_size=40))
def test_any_text(text: str) -> None:
    with contextlib.suppress(yaml.YAMLError, ConfigError):
        load({"tiers": yaml.safe_load(text)})
