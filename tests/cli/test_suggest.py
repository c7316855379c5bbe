"""`kvtier config suggest`: what it prints is what an engine can start with."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kvtier.cli.geometry import read_geometry
from kvtier.cli.suggest import compose, zero_blocks
from kvtier.config import load
from kvtier.errors import ConfigError
from tests import trees
from tests.patience import HANG_S
from tests.trees import GIB, LLAMA_8B


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return tmp_path


def test_what_it_writes_is_loaded_again(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    command = [sys.executable, "-m", "kvtier.cli", "config", "suggest", "--model", str(model)]
    command += [
        "--path",
        str(tmp_path / "cache"),
        "--tp",
        "2",
        "--output",
        str(file),
        "--deepspeed",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (0, "")
    config = load(file)
    assert [tier.kind for tier in config.tiers][0::2] == ["dram"]
    assert config.tiers[-1].options["path"] == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert f"vllm serve {model}" in done.stdout
    assert "--tensor-parallel-size 2" in done.stdout
    transfer = done.stdout.partition("--kv-transfer-config '")[2].partition("'")[0]
    assert json.loads(transfer)["kv_connector_extra_config"] == {"kvtier": str(file)}
    blocks = json.loads(done.stdout[done.stdout.rindex("\n{") :])
    assert blocks["zero_optimization"]["offload_param"]["nvme_path"] == str(tmp_path / "cache")


def test_without_a_file_the_yaml_is_on_the_screen(model: Path) -> None:
    command = [sys.executable, "-m", "kvtier.cli", "config", "suggest", "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert (
        load(yaml.safe_load(done.stdout)).tiers[0].capacity
    )  # all of it, as it would be redirected
    assert "# no file tier: name a directory" in done.stdout
    assert "\n# vllm serve" in done.stdout


def test_half_of_the_container_and_the_memory_only_node(model: Path, tmp_path: Path) -> None:
    root = trees.cxl(tmp_path / "machine")
    trees.cgroup(root, 100 * GIB, 20 * GIB)
    made = compose(read_geometry(model, ranks=1), model, None, 1, 16, root=root)
    assert made.raw["tiers"] == [
        {"name": "dram", "kind": "dram", "capacity": "40GiB", "numa": "auto"},
        {"name": "cxl", "kind": "memory", "capacity": "57GiB", "numa": [1]},
    ]
    assert "dram: room for 327,680 tokens" in made.notes  # 40 GiB of 128 KiB per token


def test_no_room_for_one_chunk_is_said(model: Path, tmp_path: Path) -> None:
    root = trees.one_socket(tmp_path / "machine")
    trees.cgroup(root, 3 << 20, 0)
    with pytest.raises(ConfigError, match="no room for one chunk"):
        compose(read_geometry(model, ranks=1), model, None, 1, 16, root=root)


def test_deepspeed_takes_the_blocks() -> None:
    """By DeepSpeed's own classes: make test-deepspeed."""
    where = "deepspeed.runtime.zero.offload_config"
    config = pytest.importorskip(where, reason="needs DeepSpeed: make test-deepspeed")
    aio = importlib.import_module("deepspeed.runtime.swap_tensor.aio_config")
    blocks = zero_blocks(Path("/mnt/nvme"), 8)
    offload = blocks["zero_optimization"]
    assert isinstance(offload, dict)
    taken = config.DeepSpeedZeroOffloadParamConfig(**offload["offload_param"])
    assert str(taken.nvme_path) == "/mnt/nvme"
    assert aio.get_aio_config(blocks) == {**aio.AIO_DEFAULT_DICT, **blocks["aio"]}  # type: ignore[dict-item]


def test_of_ranks_that_have_the_same_kv_one_keeps_the_records(tmp_path: Path) -> None:
    latent = LLAMA_8B | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(latent))
    rooms = []
    for ranks in (1, 4):
        made = compose(read_geometry(tmp_path, ranks=ranks), tmp_path, tmp_path / "kv", ranks, 16)
        rooms.append([note for note in made.notes if note.startswith("nvme: room for")])
    alone, four = (int(note.split()[3].replace(",", "")) for (note,) in rooms)
    assert four == pytest.approx(alone, rel=0.1), "a disk of this machine fills"


def test_a_directory_that_takes_nothing_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"--path: /proc/kv: .*choose another path"):
        compose(read_geometry(model, ranks=1), model, Path("/proc/kv"), ranks=1, block_tokens=16)
