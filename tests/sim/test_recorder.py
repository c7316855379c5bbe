"""What a live engine writes down: complete, replayable, never in the way."""

import os
import threading
from pathlib import Path

import msgspec
import pytest

from kvtier.config import TraceConfig
from kvtier.sim.files import TraceFile
from kvtier.sim.recorder import Recorder
from kvtier.types import BlockKey
from tests.patience import HANG_S


def key(i: int) -> BlockKey:
    return BlockKey(i.to_bytes(8, "big") * 4 + bytes(4))


class Clock:
    def __init__(self) -> None:
        self.now = 1.7e9

    def __call__(self) -> float:
        return self.now


def recorded(path: Path, clock: Clock, *, session: str | None = None) -> Recorder:
    """Let two requests arrive; the second leaves first."""
    recorder = Recorder(TraceConfig(record=str(path)), 256, clock=clock)
    recorder.arrived("a", [key(2), key(4)], 600, session)
    clock.now += 2
    recorder.arrived("b", [key(2)], 300, None)
    clock.now += 1
    recorder.departed("b", 7)
    recorder.departed("a", 9)
    recorder.departed("stranger", 1)
    recorder.close()
    return recorder


def test_a_recorded_trace_is_read_back(tmp_path: Path) -> None:
    recorder = recorded(tmp_path / "t.jsonl", Clock(), session="somebody")
    assert (recorder.written, recorder.dropped) == (2, 0)
    read = TraceFile(tmp_path / "t.jsonl").load()
    assert read.block_tokens == 256
    assert read.at_s.tolist() == [0.0, 2.0]
    assert read.prompt_tokens.tolist() == [600, 300]
    assert read.output_tokens.tolist() == [9, 7]
    assert read.blocks(0).tolist() == [1, 2]
    assert read.blocks(1).tolist() == [1]
    assert read.session[0] >= 0
    assert read.session[1] == -1


def test_no_word_of_anybody_is_in_it(tmp_path: Path) -> None:
    recorded(tmp_path / "t.jsonl", Clock(), session="somebody")
    text = (tmp_path / "t.jsonl").read_text()
    assert "somebody" not in text
    rows = [msgspec.json.decode(line) for line in text.splitlines()[1:]]
    assert all(row.keys() <= {"t", "in", "out", "keys", "s"} for row in rows)


def test_each_of_several_engines_has_its_file(tmp_path: Path) -> None:
    for engine in (0, 1):
        config = TraceConfig(record=str(tmp_path / "trace.jsonl"))
        recorder = Recorder(config, 16, engine=engine)
        recorder.arrived("r", [key(1), key(2)], 32, None)
        recorder.departed("r", 1)
        recorder.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["trace.dp0.jsonl", "trace.dp1.jsonl"]
    assert all(len(file.read_text().splitlines()) == 2 for file in files)


def test_a_restarted_engine_appends(tmp_path: Path) -> None:
    clock = Clock()
    recorded(tmp_path / "t.jsonl", clock)
    clock.now += 100
    recorded(tmp_path / "t.jsonl", clock)
    file = TraceFile(tmp_path / "t.jsonl")
    assert file.load().at_s.tolist() == [0.0, 2.0, 103.0, 105.0]
    assert file.skipped.count == 0


def test_another_size_of_blocks_is_skipped_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    recorded(path, Clock())
    with path.open("a") as file:
        file.write('{"kvtier_trace": 1, "block_tokens": 512}\n')
    made = TraceFile(path)
    assert len(made.load()) == 2
    assert "another size" in made.skipped.rows[0][1]


def test_a_slow_disk_drops_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file is a pipe that nobody reads: the writer stands at its start, the queue holds one."""
    os.mkfifo(tmp_path / "t")
    recorder = Recorder(TraceConfig(record=str(tmp_path / "t"), queue=1), 256)
    for i in range(5):
        recorder.arrived(str(i), [key(i)], 300, None)
        recorder.departed(str(i), 1)
    assert recorder.dropped == 4
    assert "loses requests" in caplog.text
    assert caplog.text.count("loses requests") == 1
    recorder.close()
    reader = threading.Thread(target=(tmp_path / "t").read_bytes)
    reader.start()
    recorder._queue.put(None)
    recorder._thread.join(HANG_S)
    reader.join(HANG_S)


def test_a_file_that_cannot_be_written_is_said_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = recorded(tmp_path / "none" / "t", Clock())
    assert recorder.written == 0
    assert recorder.dropped >= 1
    assert "No such file" in caplog.text
