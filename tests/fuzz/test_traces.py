"""Trace files of each format, nearly right: read, or refused in one line; what is read can be described and replayed."""

import gzip
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.config import Plugin
from kvtier.errors import ConfigError
from kvtier.sim.blocks import one_tier, replay_blocks
from kvtier.sim.statistics import describe
from kvtier.trace.files import TraceFile
from kvtier.trace.formats import FORMATS
from kvtier.trace.sessions import templates
from tests.fuzz.mutations import readable, texts
from tests.fuzz.scale import examples
from tests.trace.test_formats import TEXTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module", autouse=True)
def _memory() -> Iterator[None]:
    """Let what would take the machine's memory fail here instead."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def read(path: Path, name: str) -> None:
    """Do with a trace what the commands do."""
    try:
        file = TraceFile(path, name)
        trace = file.load()
    except ConfigError as exc:
        readable(exc)
        return
    assert all(why.isprintable() for _, why in file.skipped.rows)
    assert (trace.prompt_tokens >= 0).all()
    assert (trace.output_tokens >= 0).all()
    assert np.isfinite(trace.at_s).all()
    assert (trace.ids >= 0).all()
    if len(trace.ids) < 10_000:
        assert msgspec.json.encode(describe(trace, [trace.block_tokens, 9 * trace.block_tokens]))
        templates(trace)
        replay_blocks(trace, one_tier(Plugin(kind="lru")), slots=3, block_nbytes=1)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("auto", [True, False])
def test_text(name: str, auto: bool, folder: Path) -> None:
    path = folder / "trace"

    @given(texts([TEXTS[name]]))
    @examples(40)
    def check(text: str) -> None:
        path.write_text(text, errors="surrogatepass")
        read(path, "auto" if auto else name)

    check()


@given(st.binary(max_size=300), st.sampled_from(["auto", *FORMATS]))
@examples(60)
def test_bytes(folder: Path, content: bytes, name: str) -> None:
    path = folder / "trace"
    path.write_bytes(content)
    read(path, name)


@given(st.integers(0, 400), st.binary(max_size=3), st.sampled_from(["gz", "zst"]))
@examples(40)
def test_compressed(folder: Path, at: int, new: bytes, suffix: str) -> None:
    if suffix == "gz":
        whole = gzip.compress(TEXTS["mooncake"].encode() * 3)
    else:
        whole = pytest.importorskip("zstandard").compress(TEXTS["mooncake"].encode() * 3)
    path = folder / f"trace.{suffix}"
    path.write_bytes(whole[:at] + new + whole[at + 1 :])
    read(path, "mooncake")
