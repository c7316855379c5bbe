"""How a command ends that somebody ends, or that nobody listens to: no traceback, whatever it was doing."""

import gzip
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from kvtier.demo.process import end_session, session
from kvtier.io_process import record
from kvtier.io_process.record import Header
from kvtier.types import PAGE
from tests.interrupts import heeded
from tests.patience import HANG_S, until

TRACE = Path(__file__).parents[1] / "traces" / "weka_300.jsonl.gz"
KV = Path(__file__).parents[1] / "codecs" / "kv-bf16.npy"
TIERS = "tiers: [{{kind: dram, capacity: 64MiB}}, {{kind: file, path: {}/kv, capacity: 64MiB}}]\n"

SHORT = {
    "config check": "config check {folder}/kvtier.yaml",
    "check": "check {folder}",
    "check --json": "check {folder} --json",
    "doctor": "doctor",
    "trace stats": "trace stats {folder}/short.jsonl --capacity-tokens 1k",
    "replay": "replay --trace {folder}/short.jsonl --jobs 1 --capacity-tokens 1k",
    "plan": "plan --model {folder} --gpu-memory 80GiB",
    "config suggest": "config suggest --model {folder} --path {folder}/kv",
    "bench codec": "bench codec --kv {kv} --dtype bf16 --chunk-tokens 16 --codec raw",
    "help": "--help",
    "a mistake": "config check {folder}/none.yaml",
}
LONG = {
    "replay": "replay --trace {trace} --jobs 1 --policy session,gdsf,attention --capacity-tokens 1M,2M,3M,4M,5M",
    "trace synth": "trace synth -o {folder}/t.jsonl --requests 9000000",
    "bench codec": "bench codec --kv {folder}/kv.npy --chunk-tokens 16",
    "bench tiers": "bench tiers --config {folder}/kvtier.yaml --nbytes 1GiB --fio-seconds 0",
    "check": "check {folder}/endless",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ends")
    (made / "kvtier.yaml").write_text(TIERS.format(made))
    (made / "config.json").write_text(
        '{"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128}'
    )
    endless(made / "endless")
    shape = (2, 2, 50_000, 2, 64)
    np.save(made / "kv.npy", np.random.default_rng(1).integers(0, 1 << 14, shape, np.uint16))
    with gzip.open(TRACE, "rt") as file:
        (made / "short.jsonl").write_text("".join(islice(file, 20)))
    return made


def endless(path: Path) -> None:
    """Leave a sparse record of a terabyte, whose header is right: it is read in pieces, for minutes."""
    key, nbytes, page = b"\0" * 36, 1 << 40, np.zeros(PAGE, np.uint8)
    record.pack(Header(0, "ab" * 16, 0, 0, 16, nbytes, nbytes, key, b"", bytes(16)), page)
    file = path / ("ab" * 16) / "r0" / "00" / f"{key.hex()}.kvt"
    file.parent.mkdir(parents=True)
    (file.parents[2] / "manifest.json").write_text("{}")
    file.write_bytes(page)
    os.truncate(file, PAGE + nbytes)


def words(text: str, folder: Path) -> list[str]:
    filled = text.format(folder=folder, trace=TRACE, kv=KV)
    return [sys.executable, "-m", "kvtier.cli", *filled.split()]


@pytest.mark.parametrize("name", SHORT)
def test_nobody_reads_what_it_prints(name: str, folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            words(SHORT[name], folder), stdout=writer, stderr=subprocess.PIPE, text=True, timeout=HANG_S
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("name", ["config check", "doctor", "trace stats", "plan"])
def test_the_disk_behind_its_output_is_full(name: str, folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            words(SHORT[name], folder), stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANG_S
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", LONG)
def test_a_signal_ends_it(name: str, number: signal.Signals, folder: Path) -> None:
    with heeded():
        started = subprocess.Popen(
            words(LONG[name], folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: at_work(started), "it has begun")
        started.send_signal(number)
        said = started.communicate(timeout=HANG_S)[0].decode()
        assert started.returncode == 128 + number, said
        assert "Traceback" not in said
        until(lambda: not session(started.pid), "its children leave")
    finally:
        end_session(started)


def at_work(process: "subprocess.Popen[bytes]") -> bool:
    """Whether a command has imported all that it needs: it has used a second of processor time."""
    assert process.poll() is None, "it ended by itself"
    time.sleep(0.05)
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) > 1.2 * os.sysconf("SC_CLK_TCK")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[31m\n")
    os.mkdir(odd)
    for text in ("check", "config check", "trace stats", "bench codec --kv"):
        done = subprocess.run(
            [sys.executable, "-m", "kvtier.cli", *text.split(), odd],
            capture_output=True,
            timeout=HANG_S,
        )
        assert b"Traceback" not in done.stderr
        assert b"\x1b" not in done.stdout + done.stderr
