"""`kvtier bench codec`: what codecs do to the keys and values of your model, on this machine."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from kvtier import registry
from kvtier.cli.codec_rows import Array, ChunkSample, CodecRow, cut, measure
from kvtier.cli.outputs import JsonFile, check_writable, console_beside, save_json
from kvtier.codec import Codec
from kvtier.config import Plugin
from kvtier.config.codecs import codec as read_codec
from kvtier.config.load import read_yaml
from kvtier.config.words import mistake, refuse_odd
from kvtier.errors import ConfigError, reason
from kvtier.layout import ELEMENTS

CODECS = ("raw", "lz4", "[planes, lz4]", "zstd", "lossless", "fp8", "int8", "int4")


def codec(
    kv: Annotated[
        Path | None,
        typer.Option(help="A .npy: (k/v, layers, tokens, heads, head_dim).", show_default=False),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A model's directory: its KV, from a run of vLLM.", show_default=False),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="What the model reads; Python's own sources else.", show_default=False),
    ] = None,
    dtype: Annotated[str, typer.Option(help="What --kv holds: bf16, fp16, fp8.")] = "bf16",
    chunk_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a chunk.")] = 256,
    codecs: Annotated[
        list[str] | None,
        typer.Option("--codec", help="As in the YAML; may be given several times."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Encode and decode real keys and values with each codec, on one core."""
    if (kv is None) == (model is None):
        raise ConfigError("give either --kv FILE.npy or --model DIR")
    check_writable(json_file)
    sample = cut(read(kv, dtype) if kv else capture(model, text), dtype, chunk_tokens)
    if not sample.chunks:
        raise ConfigError(f"there are fewer than {chunk_tokens} tokens; say --chunk-tokens")
    rows = [measure(name, make(name), sample) for name in codecs or CODECS]
    console_beside(json_file).print(_table(rows, sample, chunk_tokens))
    save_json(json_file, {"rows": rows})


def make(name: str) -> Codec:
    """Construct a codec as a tier's `codec:` in the YAML would; an unknown one is a ConfigError."""
    try:
        decoded = read_yaml(name)
        refuse_odd(decoded)
    except ConfigError as exc:
        raise mistake("--codec", exc) from exc
    raw = read_codec(decoded, "--codec")
    return registry.build("codec", msgspec.convert(raw, Plugin))


def read(file: Path, dtype: str) -> Array:
    """Read an array of keys and values; a file without one is a ConfigError."""
    if dtype not in ELEMENTS:
        raise ConfigError(f"--dtype: {dtype!r} is not one of {', '.join(ELEMENTS)}")
    try:
        kv: Array = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{file}: cannot be read as .npy: {reason(exc)}") from exc
    if kv.ndim != 5 or kv.shape[0] != 2:
        raise ConfigError(
            f"{file}: expected the axes (k/v, layers, tokens, heads, head_dim), got {kv.shape}"
        )
    width = np.dtype(ELEMENTS[dtype]).itemsize
    if kv.dtype.itemsize != width:
        raise ConfigError(
            f"{file}: {dtype} has elements of {8 * width} bits, these are {kv.dtype}; say --dtype"
        )
    return kv


def capture(model: Path | None, text: Path | None) -> Array:
    """Run the model in vLLM, in a process of its own, and take the KV that it writes, as bf16; a failure is a ConfigError."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kv.npy"
        command = [sys.executable, "-m", "kvtier.connectors.vllm.capture", str(model), str(out)]
        done = subprocess.run(command + ([str(text)] if text else []), check=False)
        if done.returncode:
            raise ConfigError(f"{model}: vLLM could not be run; what it said is above")
        return read(out, "bf16")


def _table(rows: list[CodecRow], sample: ChunkSample, chunk_tokens: int) -> Table:
    table = Table("codec", title=f"{len(sample.chunks)} chunks of {chunk_tokens} tokens, one core")
    for name in ("ratio", "encode MB/s", "decode MB/s", "max abs error", "relative error"):
        table.add_column(name, justify="right")
    for row in rows:
        speeds = (f"{row.encode_mb_s:,.0f}", f"{row.decode_mb_s:,.0f}")
        errors = ("0", "0") if row.lossless else (f"{row.max_abs_err:.3g}", f"{row.rel_err:.2e}")
        table.add_row(escape(row.codec), f"{row.ratio:.3f}", *speeds, *errors)
    return table
