"""`kvtier config suggest`: a configuration for this machine and model, and the flags that go with it."""

import importlib.util
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
import yaml

from kvtier import topology
from kvtier.cli.geometry import Geometry, read_geometry
from kvtier.cli.outputs import check_writable, save
from kvtier.cli.room import chunk_of, chunks_held, tokens_of
from kvtier.config import Config, load, sharers
from kvtier.doctor import disks
from kvtier.errors import ConfigError
from kvtier.tiers.mount import nearest_folder
from kvtier.units import format_nbytes

_GIB = 1 << 30
_DRAM_SHARE = 0.5  # of the free memory: vLLM's own processes and the page cache live there too
_NODE_SHARE = 0.9  # of a node that has no processors, and so nobody else
_DISK_SHARE = 0.8


class Suggestion(NamedTuple):
    """What to write down, start with, and know."""

    raw: dict[str, object]  # the YAML's content
    config: Config
    flags: list[str]
    notes: list[str]


def suggest(
    model: Annotated[
        Path,
        typer.Option(help="A model: directory, config.json, or name in the cache of Hugging Face."),
    ],
    path: Annotated[
        Path | None, typer.Option(help="A directory on a local disk, for a file tier.")
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks on this node.")] = 1,
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the engine's block.")] = 16,
    output: Annotated[
        Path | None, typer.Option(help="Write the YAML here, not to the screen.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    deepspeed: Annotated[
        bool, typer.Option(help="Add the blocks that DeepSpeed ZeRO-Inference takes.")
    ] = False,
) -> None:
    """Print a YAML that works on this machine as it is now, and vLLM's flags for it."""
    check_writable(output)
    if output and output.is_file() and not force:
        raise ConfigError(f"--output: {output} is there already; --force replaces it")
    geometry = read_geometry(model, ranks=tp)
    made = compose(geometry, model, path, tp, block_tokens, output)
    text = yaml.safe_dump(made.raw, sort_keys=False, default_flow_style=None, width=100)
    said = [*made.notes, " \\\n  ".join(made.flags)]
    if deepspeed:
        said.append(json.dumps(zero_blocks(path, made.config.io.threads), indent=2))
    if output:
        save(output, text)
        typer.echo("\n\n".join(said))
    else:  # all of it is YAML, so that it can be redirected into a file
        lines = "\n\n".join(said).splitlines()
        typer.echo(text + "\n" + "\n".join(f"# {line}".rstrip() for line in lines))


def compose(
    geometry: Geometry,
    model: Path,
    path: Path | None,
    ranks: int,
    block_tokens: int,
    output: Path | None = None,
    root: Path = topology.ROOT,
) -> Suggestion:
    """Choose tiers by what is free, and say why.

    Raises:
        ConfigError: not one chunk would fit, or the path cannot be used.
    """
    tiers: list[dict[str, object]] = [_dram(root), *_far(root)]
    notes = []
    if path is not None:
        tiers.append(_file(path))
    else:
        notes.append("no file tier: name a directory on a local NVMe with --path")
    threads = min(16, max(4, (os.cpu_count() or 4) // (2 * ranks)))
    raw: dict[str, object] = {"tiers": tiers, "io": {"threads": threads}}
    config = load({**raw, "tiers": [_known(tier) for tier in tiers]})
    chunk = chunk_of(config, geometry, block_tokens, ranks)
    for index, tier in enumerate(config.tiers):
        among = sharers(tier, index, ranks, copies=geometry.copies)
        tokens = tokens_of(chunks_held(tier, chunk, index, among), chunk, geometry)
        notes.append(f"{tier.name}: room for {tokens:,} tokens")
    if path is not None:
        notes.append("kvtier bench tiers measures this disk and says which io.threads it wants")
    return Suggestion(raw, config, _flags(model, ranks, output), notes)


def zero_blocks(path: Path | None, threads: int) -> dict[str, object]:
    """Make the blocks of a DeepSpeed configuration that offload weights as kvtier offloads KV.

    The names are those of DeepSpeedZeroOffloadParamConfig and of its `aio` section.
    """
    offload: dict[str, object] = {"device": "cpu", "pin_memory": True}
    if path is not None:
        offload = {"device": "nvme", "nvme_path": str(path), "pin_memory": True}
    return {
        "zero_optimization": {"stage": 3, "offload_param": offload},
        "aio": {
            "block_size": 1 << 20,
            "queue_depth": 2 * threads,
            "intra_op_parallelism": max(1, threads // 2),
            "single_submit": False,
            "overlap_events": True,
        },
    }


def _dram(root: Path) -> dict[str, object]:
    capacity = _whole(topology.free_nbytes(root) * _DRAM_SHARE)
    return {"name": "dram", "kind": "dram", "capacity": capacity, "numa": "auto"}


def _far(root: Path) -> list[dict[str, object]]:
    """One tier over all nodes that are memory and nothing else."""
    far = [node for node in topology.nodes(root) if node.memory_only]
    if not far:
        return []
    capacity = _whole(sum(node.free_nbytes for node in far) * _NODE_SHARE)
    numa = [node.number for node in far]
    return [{"name": "cxl", "kind": "memory", "capacity": capacity, "numa": numa}]


def _file(path: Path) -> dict[str, object]:
    path = path.absolute()
    if why := disks.failure(path):
        raise ConfigError(f"--path: {path}: {why}")
    free = shutil.disk_usage(nearest_folder(path)).free
    tier: dict[str, object] = {
        "name": "nvme",
        "kind": "file",
        "path": str(path),
        "capacity": _whole(free * _DISK_SHARE),
    }
    if importlib.util.find_spec("zstandard"):
        tier["codec"] = "lossless"
    return tier


def _known(tier: dict[str, object]) -> dict[str, object]:
    """Drop nodes that are of a recorded machine, so that what is left can be checked on this one."""
    return {key: value for key, value in tier.items() if key != "numa"}


def _whole(nbytes: float) -> str:
    """Round down to what people write."""
    unit = _GIB if nbytes >= _GIB else 1 << 20
    return format_nbytes(int(nbytes) // unit * unit)


def _flags(model: Path, ranks: int, output: Path | None) -> list[str]:
    kvtier = str(output.absolute()) if output else "kvtier.yaml"
    transfer = {
        "kv_connector": "KVTierConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"kvtier": kvtier},
    }
    served = model.parent if model.name == "config.json" else model
    flags = [
        f"vllm serve {shlex.quote(str(served))}",
        f"--kv-transfer-config {shlex.quote(json.dumps(transfer))}",
    ]
    return [*flags, f"--tensor-parallel-size {ranks}"] if ranks > 1 else flags
