"""Each format is read; a malformed row is named by its number, skipped and counted."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from kvtier.errors import ConfigError
from kvtier.trace.files import TraceFile
from kvtier.trace.formats import FORMATS, Drawing
from kvtier.trace.trace import Row, Trace, TraceBuilder, chain, expand, runs_of
from tests.sim.rows import TRACES

MOONCAKE = """{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 1500, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}
"""
BAILIAN = """{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 32, "output_length": 9, "type": "text", "turn": 1, "hash_ids": [7, 8]}
{"chat_id": 2, "parent_chat_id": -1, "timestamp": 1, "input_length": 16, "output_length": 9, "type": "text", "turn": 1, "hash_ids": [7]}
{"chat_id": 3, "parent_chat_id": 1, "timestamp": 2, "input_length": 48, "output_length": 9, "type": "text", "turn": 2, "hash_ids": [7, 8, 9]}
"""
WEKA = """{"s":"a","a":"main","t":0.0,"api":7.3,"think":0.0,"in":320,"out":9,"m":"x","runs":[[1,5]]}
{"s":"a","a":"main","t":19.0,"api":9.1,"think":12.0,"in":384,"out":9,"m":"x","runs":[[1,4],[9,2]]}
{"s":"b","a":"main","t":0.0,"api":9.1,"think":null,"in":64,"out":9,"m":"x","runs":[[1,1]]}
"""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,4808,10
2023-11-16 18:15:50.9951690,3180,8
2023-11-16 18:15:52.1951690,9000,8
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
"""
OWN = """{"kvtier_trace": 1, "block_tokens": 32}
{"t": 0.0, "in": 64, "out": 3, "runs": [[5, 2]], "s": 4}
{"t": 1.0, "in": 64, "out": 3, "keys": "00000000000000100000000000000012"}
"""
TEXTS = {
    "mooncake": MOONCAKE,
    "bailian": BAILIAN,
    "weka": WEKA,
    "azure": AZURE,
    "burstgpt": BURSTGPT,
    "kvtier": OWN,
}


def load(directory: Path, text: str, name: str = "auto") -> tuple[TraceFile, Trace]:
    path = directory / "trace"
    path.write_text(text)
    file = TraceFile(path, name)
    return file, file.load()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_format_is_recognised_and_read(name: str, tmp_path: Path) -> None:
    file, read = load(tmp_path, TEXTS[name])
    assert type(file.format) is FORMATS[name]
    assert file.skipped.count == 0
    heading = name in ("azure", "burstgpt", "kvtier")
    assert len(read) == TEXTS[name].count("\n") - heading
    assert read.at_s[0] >= 0
    assert (np.diff(read.at_s) >= 0).all()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_second_row_that_is_cut_short_is_named(name: str, tmp_path: Path) -> None:
    lines = TEXTS[name].splitlines()
    heading = name in ("azure", "burstgpt", "kvtier")
    bad = 1 + heading
    lines[bad] = lines[bad][: len(lines[bad]) // 3]
    file, read = load(tmp_path, "\n".join(lines))
    assert [number for number, _ in file.skipped.rows] == [bad + 1]
    assert file.skipped.count == 1
    assert len(read) == len(lines) - heading - 1


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"timestamp": -1, "input_length": 600, "output_length": 5, "hash_ids": [0]}', ">= 0"),
        ('{"timestamp": 1, "input_length": 6, "output_length": 5, "hash_ids": [0, 1]}', "2 blocks"),
        ('{"timestamp": 1, "input_length": 1024, "output_length": 5, "hash_ids": [3, 3]}', "twice"),
        ('{"timestamp": 1, "input_length": 600, "output_length": 5, "hash_ids": [-3]}', "negative"),
        ('{"timestamp": 1, "input_length": 600, "output_length": 5}', "hash_ids"),
        ("nonsense", "malformed"),
    ],
)
def test_a_mistake_is_said_in_words(row: str, why: str, tmp_path: Path) -> None:
    file, _ = load(tmp_path, MOONCAKE + row + "\n", "mooncake")
    assert file.skipped.rows[0][0] == 3
    assert why in file.skipped.rows[0][1]


def test_only_the_first_mistakes_are_kept_in_words(tmp_path: Path) -> None:
    file, _ = load(tmp_path, MOONCAKE + "nonsense\n" * 50)
    assert (file.skipped.count, len(file.skipped.rows)) == (50, 10)


def test_turns_of_a_chat_are_one_session(tmp_path: Path) -> None:
    _, read = load(tmp_path, BAILIAN)
    assert read.session.tolist() == [0, 1, 0]


def test_ids_of_two_sessions_differ_and_thinking_is_kept(tmp_path: Path) -> None:
    file, _ = load(tmp_path, WEKA)
    rows = sorted(file.rows(), key=lambda row: (row.session, row.at_s))
    assert [row.think_s for row in rows] == [0.0, 12.0, None]
    assert rows[1].blocks.tolist() == [1, 2, 3, 4, 9, 10]
    assert not set(rows[2].blocks.tolist()) & set(rows[1].blocks.tolist())


def test_recorded_hashes_become_ids(tmp_path: Path) -> None:
    _, read = load(tmp_path, OWN)
    assert read.block_tokens == 32
    assert read.blocks(1).tolist() == [8, 9]


def test_dates_become_seconds(tmp_path: Path) -> None:
    _, read = load(tmp_path, AZURE)
    assert read.at_s.tolist() == pytest.approx([0.68059, 4.995169, 6.195169])


def test_a_failed_request_of_burstgpt_is_skipped(tmp_path: Path) -> None:
    file, _ = load(tmp_path, BURSTGPT + "50,ChatGPT,40,0,40,Conversation log\n")
    assert "failed" in file.skipped.rows[0][1]


def test_the_prefix_model_is_seeded_and_continues(tmp_path: Path) -> None:
    lines = [f"{i},ChatGPT,{400 + 64 * i},18,490,x" for i in range(300)]
    text = BURSTGPT.splitlines()[0] + "\n" + "\n".join(lines)
    (tmp_path / "t").write_text(text)
    made = [TraceFile(tmp_path / "t", drawing=Drawing(seed=seed)).load() for seed in (1, 1, 2)]
    assert made[0].ids.tolist() == made[1].ids.tolist() != made[2].ids.tolist()
    turns = np.bincount(made[0].session)
    assert 0.3 < 1 - len(turns) / 300 < 0.7  # continues = .5
    assert turns.max() > 2
    assert made[0].distinct < len(made[0].ids)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files_are_the_same(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "gz":
        path.write_bytes(gzip.compress(MOONCAKE.encode()))
    else:
        zstandard = pytest.importorskip("zstandard")
        path.write_bytes(zstandard.compress(MOONCAKE.encode()))
    assert TraceFile(path).load().ids.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_file_that_is_not_what_its_name_says(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    path.write_text(MOONCAKE)
    with pytest.raises(ConfigError, match="cannot be read"):
        TraceFile(path)


def test_mistakes_about_the_file_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        TraceFile(tmp_path / "none")
    (tmp_path / "t").write_text("hello\n")
    with pytest.raises(ConfigError, match="no known format"):
        TraceFile(tmp_path / "t")
    with pytest.raises(ConfigError, match=r"did you mean 'mooncake'"):
        TraceFile(tmp_path / "t", "moncake")
    with pytest.raises(ConfigError, match="no request in it; line 1"):
        TraceFile(tmp_path / "t", "mooncake").load()


def test_chunks_are_whole_multiples_of_blocks() -> None:
    file = TraceFile(TRACES / "weka_300.jsonl.gz")
    with pytest.raises(ConfigError, match="use 128"):
        file.load(100)
    fine, coarse = (TraceFile(TRACES / "weka_300.jsonl.gz").load(n) for n in (None, 256))
    assert coarse.block_tokens == 256
    assert coarse.blocks(5).tolist() == fine.blocks(5)[3::4].tolist()


def test_ids_that_are_not_chained_are_chained() -> None:
    builder = TraceBuilder(16)
    for blocks in ([1, 2], [3, 2], [1, 2, 4]):
        builder.add(Row(0.0, 64, 1, np.array(blocks, np.int64)))
    made = builder.build()
    first, second, third = (made.blocks(i).tolist() for i in range(3))
    assert first[1] != second[1]
    assert third[:2] == first


def test_chaining_what_is_chained_changes_names_only() -> None:
    real = TraceFile(TRACES / "mooncake_800.jsonl.gz").load()
    again = chain(real.ids, real.starts)
    assert len(np.unique(again)) == real.distinct
    assert len({*zip(real.ids.tolist(), again.tolist(), strict=True)}) == real.distinct


def test_runs_and_back() -> None:
    ids = np.array([5, 6, 7, 1, 9, 10], np.int64)
    assert runs_of(ids) == [(5, 3), (1, 1), (9, 2)]
    assert expand(runs_of(ids)).tolist() == ids.tolist()
    assert runs_of(ids[:0]) == []
    assert expand([]).tolist() == []


def test_no_thinking_is_no_number() -> None:
    builder = TraceBuilder(16)
    builder.add(Row(0.0, 16, 1, np.array([1], np.int64)))
    made = builder.build()
    assert math.isnan(made.think_s[0])
