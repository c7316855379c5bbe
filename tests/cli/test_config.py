"""`kvtier config check`, run as its users run it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier import topology
from kvtier.cli.config import fit_dram
from kvtier.config import load
from kvtier.errors import ConfigError
from kvtier.units import parse_nbytes
from tests.patience import HANG_S
from tests.trees import LLAMA_8B

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kvtier.cli", *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"COLUMNS": "200", "PYTHONPATH": str(ROOT)},
            timeout=HANG_S,
        )

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kvtier.yaml"
    path.write_text(
        "tiers:\n"
        "  - {name: dram, kind: dram, capacity: 1GiB}\n"
        f"  - {{name: nvme, kind: file, path: {tmp_path}/cache, capacity: 10GiB, codec: zstd}}\n"
    )
    return path


def words(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃").split("│")]


def test_without_a_model_it_lists_the_tiers(run: Run, file: Path) -> None:
    done = run("config", "check", file)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [words(line) for line in done.stdout.splitlines() if line.startswith("│")]
    assert rows == [
        ["dram", "1GiB", "1GiB"],
        ["nvme", "10GiB", "10GiB"],
        ["dram", "dram", "lru", "always", "-", "-", "-"],
        ["nvme", "file", "lru", "always", "zstd (level=1)", "idle", "2s"],
    ]
    assert "LoRA requests stay in dram" in done.stdout
    assert not (file.parent / "cache").exists()


def test_with_a_model_it_counts_chunks_and_tokens(run: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    done = run("config", "check", file, "--model", tmp_path, "--tp", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "GQA, 8 KV heads of 128 elements" in done.stdout
    assert (
        "chunk: 32 tokens (auto: no more than 1/256 of DRAM), 2MiB per group and rank"
        in done.stdout
    )
    rows = [words(line) for line in done.stdout.splitlines() if line.startswith("│")]
    assert rows[0] == ["dram", "1GiB", "512MiB", "256", "2MiB", "8,192"]
    assert rows[1] == ["nvme", "10GiB", "5GiB", ">= 2,555", "2.004MiB", ">= 81,760"]


def test_of_ranks_that_have_the_same_kv_one_keeps_the_records(
    run: Run, file: Path, tmp_path: Path
) -> None:
    latent = LLAMA_8B | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(latent))
    rows = []
    for tp in ("1", "2"):
        done = run("config", "check", file, "--model", tmp_path, "--tp", tp)
        assert (done.returncode, done.stderr) == (0, "")
        rows += [words(line) for line in done.stdout.splitlines() if line.startswith("│")][:2]
        said = "one rank keeps the records of nvme" in " ".join(done.stdout.split())
        assert said == (tp == "2")
    alone, nvme, each, once = rows
    assert (alone[2], each[2], once[2]) == ("1GiB", "512MiB", "10GiB, one for all")
    tokens = [int(row[-1].strip(">= ").replace(",", "")) for row in (nvme, once)]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.01), "as many as for one rank"


def test_dram_that_is_not_there_is_clamped_as_the_start_would(
    run: Run, file: Path, tmp_path: Path
) -> None:
    file.write_text("tiers: [{name: dram, kind: dram, capacity: 640TiB}]")
    done = run("config", "check", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tiers[0].capacity: 640TiB, and " in done.stdout
    assert "the tier would be clamped to " in done.stdout
    (capacity,) = [words(row)[1] for row in done.stdout.splitlines() if row.startswith("│ dram")][
        :1
    ]
    assert parse_nbytes(capacity) < 640 << 40


def test_dram_without_room_for_a_few_chunks_is_refused_as_the_start_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "free_nbytes", lambda: 64 << 20)
    written = load({"tiers": [{"name": "dram", "kind": "dram", "capacity": "1GiB"}]})
    fitting = fit_dram(written, 2, 1 << 20)
    assert fitting.tiers[0].capacity == 56 << 20
    with pytest.raises(ConfigError, match="that is no room for 16 chunks of 2MiB"):
        fit_dram(written, 2, 2 << 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; it needs at least 'tiers:'"),
        (
            "tiers: [{kind: dram, capcity: 1GiB}]",
            "tiers[0].capcity: unknown key (did you mean 'capacity'?)",
        ),
    ],
)
def test_a_mistake_is_a_message_and_status_1(run: Run, file: Path, text: str, message: str) -> None:
    file.write_text(text)
    done = run("config", "check", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"kvtier: {file}: {message}\n"


def test_what_only_the_model_reveals_is_refused_too(run: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    file.write_text("chunk_tokens: 24")
    done = run("config", "check", file, "--model", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "chunk_tokens: 24 is not a multiple of the engine's block of 16 tokens" in done.stderr
    file.write_text("tiers: [{kind: dram, capacity: 1MiB}]")
    done = run("config", "check", file, "--model", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "tiers[0].capacity: 1MiB per rank has no room for one chunk of 2MiB" in done.stderr


def test_it_says_which_version_it_is(run: Run) -> None:
    assert run("--version").stdout.startswith("kvtier ")


def test_help_lists_the_commands(run: Run) -> None:
    assert "config" in run("--help").stdout


def test_what_the_start_would_refuse_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "kvtier.yaml"
    path.write_text(
        "tiers:\n"
        "  - {kind: dram, capacity: 16MiB}\n"
        "  - {name: near, kind: memory, capacity: 16MiB}\n"
        "  - {name: far, kind: memory, capacity: 900TiB}\n"
    )
    done = run("config", "check", path)
    assert done.returncode == 1
    assert "tiers[2].capacity: 900TiB, and " in done.stderr
    assert "of memory are left for it" in done.stderr


def test_a_disk_that_is_too_small_is_a_note(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "kvtier.yaml"
    path.write_text(
        f"tiers: [{{kind: dram, capacity: 16MiB}}, {{kind: file, path: {tmp_path}/kv, capacity: 900TiB}}]"
    )
    done = run("config", "check", path)
    assert done.returncode == 0
    assert "0B of records, for 900TiB: the tier will hold what there is room for" in done.stdout


def test_a_trace_is_replayed_over_a_machine_that_is_not_here(tmp_path: Path) -> None:
    tiers: list[dict[str, object]] = [
        {"kind": "dram", "capacity": "1GiB", "numa": [900]},
        {"kind": "file", "path": "/no/such/place/kv", "capacity": "1GiB"},
    ]
    elsewhere = {"tiers": tiers, "trace": {"record": "/no/such/place/trace"}}
    assert load(elsewhere, here=False).tiers[1].options["path"] == "/no/such/place/kv"
    with pytest.raises(ConfigError, match="is not absolute"):
        load({"tiers": [tiers[0], {**tiers[1], "path": "kv"}]}, here=False)
    with pytest.raises(ConfigError):
        load(elsewhere)


def test_a_directory_that_takes_nothing_is_a_tier_less(run: Run, tmp_path: Path) -> None:
    """The engine starts; whoever checks is told by the status that it is not as it should be."""
    file = tmp_path / "proc.yaml"
    file.write_text(
        "tiers:\n"
        "  - {kind: dram, capacity: 1GiB}\n"
        "  - {name: nvme, kind: file, path: /proc/kv, capacity: 1GiB}\n"
    )
    done = run("config", "check", file)
    assert done.returncode == 1
    assert "would start with it on this machine, but without 'nvme'" in done.stdout
    assert "- disk /proc/kv: " in done.stdout
    assert "choose another path" in done.stdout


def test_a_chunk_that_fits_no_block_needs_no_model_to_be_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("chunk_tokens: 100\n")
    done = run("config", "check", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not a multiple of the engine's block of 16 tokens; use 112 or auto" in done.stderr
