"""Files that are no traces, and rows that would take a machine's memory: named before they are expanded."""

import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kvtier import topology
from kvtier.errors import ConfigError
from kvtier.sim.statistics import describe
from kvtier.trace.files import TraceFile
from kvtier.trace.trace import Trace
from tests.trace.test_formats import AZURE, BURSTGPT, MOONCAKE, OWN, WEKA

MANY = 1 << 60


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """Let what would take the machine's memory fail here instead."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def load(text: str | bytes, folder: Path, name: str = "auto") -> tuple[TraceFile, Trace]:
    path = folder / "trace"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    file = TraceFile(path, name)
    return file, file.load()


@pytest.mark.parametrize(
    ("text", "row", "why"),
    [
        (OWN, f'{{"t": 0, "in": 16000000000000, "out": 1, "runs": [[0, {MANY}]]}}', "not from 0"),
        (OWN, f'{{"t": 0, "in": 64, "out": 1, "runs": [[0, {MANY}]]}}', "blocks for 64 tokens"),
        (OWN, '{"t": 0, "in": 3000000000, "out": 1, "runs": []}', "3000000000 tokens: not from"),
        (OWN, '{"t": 0, "in": 3, "out": 3000000000, "runs": []}', "3000000000 tokens: not from"),
        (OWN, '{"t": 0, "in": 3, "out": 3, "s": 3000000000}', "session 3000000000: not from -1"),
        (OWN, '{"t": 0, "in": 3, "out": 3, "s": -7}', "session -7: not from -1"),
        (OWN, '{"t": 1e300, "in": 3, "out": 3}', "second 1e+300"),
        (OWN, '{"t": 0, "in": 3, "out": 3, "think": 1e300}', "1e+300 seconds of thinking"),
        (OWN, '{"t": 0, "in": 3, "out": 3, "x": ' + "[" * 9999, ""),
        (WEKA, f'{{"s":"a","t":0,"in":{MANY},"out":9,"runs":[[1,{MANY // 64}]]}}', "not from 0"),
        (WEKA, f'{{"s":"a","t":0,"in":64,"out":9,"runs":[[{1 << 62},1]]}}', "more than 32 bits"),
        (AZURE, f"2023-11-16 18:15:52.1951690,{MANY},8", "not from 0 to"),
        (AZURE, "2023-11-16 18:15:52.1951690,5,-8", "not from 0 to"),
        (BURSTGPT, f"6,ChatGPT,{MANY},8,9,x", "not from 0 to"),
        (BURSTGPT, "nan,ChatGPT,5,8,9,x", "second nan"),
        (BURSTGPT, "inf,ChatGPT,5,8,9,x", "second inf"),
        (BURSTGPT, "1,ChatGPT,nan,8,9,x", "NaN"),
        (BURSTGPT, "1,Chat\0GPT,5,8,9," + "x" * 200_000, "field larger than field limit"),
        (MOONCAKE, '{"timestamp": 1e300, "input_length": 6, "output_length": 5, "hash_ids": []}', ""),
        (MOONCAKE, "\x1b[31m\n\n", "malformed"),
        (MOONCAKE, "x" * (17 << 20), "more than 16,777,216 bytes"),
    ],
)  # fmt: skip
def test_a_row_is_named_before_it_is_expanded(
    text: str, row: str, why: str, tmp_path: Path
) -> None:
    file, read = load(f"{text}{row}\n{text.splitlines()[-1]}\n", tmp_path)
    assert file.skipped.rows[0][0] == text.count("\n") + 1
    assert why in file.skipped.rows[0][1]
    assert file.skipped.rows[0][1].isprintable()
    assert len(read) == text.count("\n") + 1 - (text in (AZURE, BURSTGPT, OWN))


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 1000,
        b"{" + b"x" * (17 << 20),
        b"a," * 100_000,
        b'"' + b"a" * 200_000,
        b"\xff\xfe",
        b'{"hash_ids"\xff',
        b"",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("name", ["auto", "burstgpt", "azure", "kvtier", "weka"])
def test_what_is_no_trace_is_refused_in_one_line(content: bytes, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(content, tmp_path, name)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(f"{tmp_path}/trace: ")


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="it is no file"):
            TraceFile(path)


def test_many_small_rows_stop_before_the_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: 64 << 20)
    row = '{"t": 0, "in": 32000000, "out": 1, "runs": [[0, 1000000]]}\n'
    with pytest.raises(ConfigError, match=r"line 3: .* 2,000,000 references to blocks"):
        load(OWN.splitlines()[0] + "\n" + row * 50, tmp_path)


def test_numbers_of_sessions_are_names_not_sizes(tmp_path: Path) -> None:
    row = '{"t": 1, "in": 64, "out": 3, "runs": [[5, 2]], "s": 2147483647}\n'
    _, read = load(OWN + row, tmp_path)
    turns = describe(read, [64]).distributions[-2]
    assert (turns.name, turns.mean) == ("turns", 1.5)
    assert msgspec.json.encode(describe(read, [64]))
