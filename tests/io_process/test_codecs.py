"""Codecs in a running I/O process: answers say the encoding, and what lies beside records is no record."""

from pathlib import Path

import numpy as np

from kvtier.config.codecs import codec as read_codec
from kvtier.types import OpKind, OpStatus
from tests.io_process.rig import Rig, file_tier, rig

KV = Path(__file__).parents[1] / "codecs" / "kv-bf16.npy"
LOSSLESS = {
    "kind": "pipeline",
    "options": {"stages": [{"kind": "planes"}, {"kind": "zstd", "options": {"level": 1}}]},
}
BUDGET = {"kind": "budget", "options": {"among": [{"kind": "lz4"}, {"kind": "zstd"}]}}
DICTIONARY = {"kind": "zstd_dict", "options": {"train": 8, "dictionary": 1024}}


def tier(path: Path, codec: object) -> dict[str, object]:
    return file_tier(path / "kv") | {"codec": codec}


def write(io: Rig, numbers: range) -> list[str]:
    """Write a chunk per number and return how each was encoded."""
    for number in numbers:
        io.fill(number)
    results = io.run(*[io.op(OpKind.WRITE, number) for number in numbers])
    assert {result.status for result in results} == {OpStatus.OK}
    return [result.codec for result in results]


def read(io: Rig, numbers: range) -> None:
    """Read every chunk back and compare."""
    for number in numbers:
        expected = io.fill(number)
        io.arena.slot(number)[:] = 0
        assert io.run(io.op(OpKind.READ, number))[0].status is OpStatus.OK
        assert np.array_equal(io.arena.slot(number)[: len(expected)], expected)


def test_answers_say_the_encoding(tmp_path: Path) -> None:
    with rig([tier(tmp_path, LOSSLESS)]) as io:
        assert write(io, range(2)) == ["planes+zstd"] * 2
        read(io, range(2))
        io.arena.slot(5)[:] = np.random.default_rng(0).integers(0, 256, 20480, dtype=np.uint8)
        assert io.run(io.op(OpKind.WRITE, 5))[0].codec == "raw"


def test_records_of_real_keys_and_values_really_shrink(tmp_path: Path) -> None:
    chunk = np.load(KV).reshape(-1).view(np.uint8)
    found = {}
    for name in ("raw", "lossless"):
        codec = read_codec(name, "codec")
        with rig(
            [tier(tmp_path / name, codec)],
            slots=2,
            slot_nbytes=len(chunk),
            group_nbytes={0: len(chunk)},
            kv_dtype="bf16",
        ) as io:
            io.arena.slot(0)[:] = chunk
            found[name] = io.one(OpKind.WRITE, 0).nbytes
            assert io.one(OpKind.READ, 0, slot=1).status is OpStatus.OK
            assert np.array_equal(io.arena.slot(1), chunk)
    assert found["raw"] == len(chunk) + 4096
    assert found["raw"] / found["lossless"] > 1.45  # header and padding counted


def test_a_choice_writes_what_any_tier_reads(tmp_path: Path) -> None:
    with rig([tier(tmp_path, BUDGET)]) as io:
        found = write(io, range(20))
        assert set(found) == {"raw", "zstd"}  # lz4 was tried, and what it made was not worth it
        read(io, range(20))
    with rig([tier(tmp_path, LOSSLESS)]) as io:
        read(io, range(20))


def test_a_dictionary_is_trained_kept_and_not_listed(tmp_path: Path) -> None:
    with rig([tier(tmp_path, DICTIONARY)]) as io:
        write(io, range(12))
    assert len([*(tmp_path / "kv").rglob("*.kvt")]) == 13
    with rig([tier(tmp_path, {"kind": "raw"})]) as io:
        io.until(lambda: io.scans and io.scans[-1].done)
        assert sum(len(scan.keys) for scan in io.scans) == 12
        read(io, range(12))
