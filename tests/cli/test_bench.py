"""`kvtier bench codec`: rows for every codec, and refusals in words."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kvtier.cli.bench import app
from kvtier.cli.bench_codec import read
from kvtier.cli.codec_rows import Array, cut, entropy, measure
from kvtier.codecs.raw import RawCodec
from kvtier.errors import ConfigError

KV = Path(__file__).parents[1] / "codecs" / "kv-bf16.npy"
FIELDS = ["codec", "ratio", "encode_mb_s", "decode_mb_s", "max_abs_err", "rel_err", "lossless"]


def test_rows_as_promised(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    done = CliRunner().invoke(
        app, ["codec", "--kv", str(KV), "--chunk-tokens", "64", "--json", str(out)]
    )
    assert done.exit_code == 0, done.output
    rows = {row["codec"]: row for row in json.loads(out.read_text())["rows"]}
    assert {"raw", "lz4", "zstd", "lossless", "int8", "int4"} <= rows.keys()
    assert all(list(row) == FIELDS for row in rows.values())
    assert rows["raw"]["ratio"] == 1
    assert rows["lossless"]["lossless"]
    assert rows["lossless"]["max_abs_err"] == rows["lossless"]["rel_err"] == 0
    assert not rows["int8"]["lossless"]
    assert 0 < rows["int8"]["rel_err"] < rows["int4"]["rel_err"] < 0.2
    assert 1.4 < rows["lossless"]["ratio"] < rows["int8"]["ratio"] < rows["int4"]["ratio"]


@pytest.mark.parametrize(
    ("kv", "dtype", "message"),
    [
        (np.zeros((2, 3, 4)), "bf16", r"expected the axes \(k/v, layers"),
        (np.zeros((2, 1, 1, 1, 8), np.uint8), "bf16", "elements of 16 bits, these are uint8; say"),
        (np.zeros((2, 1, 1, 1, 8), np.uint16), "bf61", "'bf61' is not one of bf16"),
    ],
)
def test_another_array_is_refused(tmp_path: Path, kv: Array, dtype: str, message: str) -> None:
    np.save(tmp_path / "kv.npy", kv)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "kv.npy", dtype)


def test_one_source_is_needed() -> None:
    done = CliRunner().invoke(app, ["codec"])
    assert isinstance(done.exception, ConfigError)


@pytest.mark.parametrize("dtype", ["fp16", "fp8", "bf16"])
def test_what_stays_raw_has_no_error(dtype: str) -> None:
    kv = np.random.default_rng(0).integers(0, 256, (2, 2, 9, 2, 8), dtype=np.uint8)
    sample = cut(kv if dtype == "fp8" else kv.astype(np.uint16) << 7, dtype, 4)
    assert len(sample.chunks) == 2
    row = measure("raw", RawCodec(), sample)
    assert (row.ratio, row.max_abs_err, row.lossless) == (1, 0, True)


def test_entropy_of_known_bytes() -> None:
    assert entropy(np.zeros(10, np.uint8)) == 0
    assert entropy(np.arange(256, dtype=np.uint8)) == 8
