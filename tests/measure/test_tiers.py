"""`kvtier bench tiers`: it measures what is configured, cleans up, and recommends what its figures say."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kvtier.cli import bench_tiers
from kvtier.cli.bench_tiers import rewritten
from kvtier.cli.main import build
from kvtier.cli.room import Chunk
from kvtier.config import load
from kvtier.errors import ConfigError
from kvtier.measure import fio, page
from kvtier.measure.advice import advise
from kvtier.measure.fio import Cell
from kvtier.measure.tiers import Point, measure, measure_dram
from kvtier.tier import Site
from kvtier.tiers.file import FileConfig, FileTier

CHUNK = 64 << 10


def point(gb_s: float, *, chunk: int = 2 << 20, threads: int = 8, depth: int = 8) -> Point:
    each = (0.001 * depth, 0.002 * depth)
    return Point("nvme", chunk, threads, depth, "read", gb_s, *each, chunk / 2)


def test_it_recommends_the_least_that_gives_nearly_the_most() -> None:
    points = [
        *(point(g, depth=d) for g, d in ((1.0, 1), (3.0, 8), (3.1, 32))),
        *(point(g, depth=32, threads=t) for g, t in ((1.5, 2), (3.0, 4), (3.1, 16))),
        *(point(g, depth=8, chunk=c) for g, c in ((1.4, 1 << 20), (3.2, 4 << 20))),
        Point("nvme", 2 << 20, 2, 32, "write", 9.9, 0.0, 0.0, 1 << 20),  # nobody waits for it
    ]
    found = advise(points, threads=8)
    writes = [Point("nvme", 2 << 20, 8, d, "write", d, 0.0, 0.0, 1 << 20) for d in (1, 32)]
    assert advise([*points, *writes], threads=8).depth == 32  # writes share it
    assert (found.threads, found.depth, found.chunk_nbytes) == (4, 8, 2 << 20)
    assert (found.read_gb_s, found.latency_s) == (3.2, 0.001)
    assert (found.medium.read, found.medium.write) == (1.6e9, 4.95e9)  # of records of half a chunk
    assert found.medium.latency_s == pytest.approx(0.001 - (1 << 20) / 1.6e9)


def test_memory_and_file_are_measured_and_left_empty(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    tiers = [
        {"kind": "dram", "capacity": "64MiB"},
        {"name": "far", "kind": "memory", "capacity": "4MiB", "codec": "zstd"},
        {"name": "nvme", "kind": "file", "path": str(path), "capacity": "16MiB"},
    ]
    config = load({"tiers": tiers})
    for tier in config.tiers[1:]:
        points = measure(tier, CHUNK, threads=2, depths=(1, 4), nbytes=1 << 20)
        assert [(p.depth, p.way) for p in points] == [
            (1, "write"),
            (1, "read"),
            (4, "write"),
            (4, "read"),
        ]
        assert all(p.gb_s > 0 and 0 < p.median_s <= p.p99_s for p in points)
    assert [file.name for file in path.iterdir()] == ["r0.lock"]
    dram = measure_dram(config.tiers[0], CHUNK, 1 << 20)
    assert [(p.tier, p.way) for p in dram] == [("dram", "write"), ("dram", "read")]


def test_a_tier_that_an_engine_uses_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = FileTier(FileConfig(path=str(tmp_path)), Site("nvme"))
    tiers = [{"kind": "dram"}, {"kind": "file", "path": str(tmp_path), "capacity": "16MiB"}]
    monkeypatch.setattr("kvtier.measure.tiers._START_S", 0.5)
    with pytest.raises(ConfigError):
        measure(load({"tiers": tiers}).tiers[1], CHUNK, threads=2, depths=(1,), nbytes=CHUNK)
    tier.close()


@pytest.mark.skipif(not fio.installed(), reason="fio is not installed")
def test_fio_runs_and_leaves_nothing(tmp_path: Path) -> None:
    cells = list(
        fio.characterise(
            tmp_path,
            0.1,
            engines=("libaio", "nonsense"),
            mixes=("randrw",),
            blocks=(65536,),
            depths=(8,),
        )
    )
    assert [(cell.engine, cell.depth) for cell in cells] == [("libaio", 8)]
    assert all(cell.gb_s > 0 and cell.p99_s > 0 for cell in cells)
    assert not list(tmp_path.iterdir())


def test_the_page_has_a_heat_map_per_engine_and_mix() -> None:
    cells = [Cell("libaio", "randread", 65536, d, d / 10, 0.001) for d in (1, 8)]
    cells += [Cell("io_uring", "randread", 65536, 1, 0.4, 0.001)]
    text = page.render([point(1.25)], {"<nvme>": cells}, "here")
    assert text.count("<h2>&lt;nvme&gt;: fio, ") == 2
    assert "<td>1.25<td>8.00<td>16.00" in text
    assert 'rgb(213 94 0/0.80)" title="p99 1.00 ms">0.80</td>' in text  # the best of its map
    assert 'rgb(213 94 0/0.17)" title="p99 1.00 ms">0.10</td>' in text


def test_the_command_writes_back_what_it_recommends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_tiers, "_CHUNKS", (65536,))
    monkeypatch.setattr(bench_tiers, "_THREADS", (2, 8))
    model = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({**model, "torch_dtype": "bfloat16"}))
    file, out = tmp_path / "kvtier.yaml", tmp_path / "tuned.yaml"
    far = "{name: far, kind: memory, capacity: 64MiB, wrappers: []}"
    file.write_text(f"tiers: [{{kind: dram, capacity: 1GiB}}, {far}]\nio: {{queue: 128}}\n")
    command = ["bench", "tiers", "--json", "--nbytes", "1MiB"]
    command += ["--config", str(file), "--model", str(tmp_path), "--output", str(out)]
    command += ["--html", str(tmp_path / "report.html")]
    done = CliRunner().invoke(build(), command)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    (advice,) = [line for line in lines if line["result"] == "advice"]
    raw = yaml.safe_load(out.read_text())
    assert raw["io"] == {"queue": 128, "threads": advice["threads"]}
    assert raw["chunk_tokens"] % 16 == 0
    tuned = load(out)
    assert tuned.io.threads == advice["threads"]
    assert tuned.tiers[1].depth == max(2, min(advice["depth"], advice["threads"]))
    medium = tuned.tiers[1].medium
    assert medium is not None
    assert medium.read == pytest.approx(advice["medium"]["read"], rel=0.001)
    assert medium.write == pytest.approx(advice["medium"]["write"], rel=0.001)
    assert medium.latency_s == pytest.approx(advice["medium"]["latency_s"], abs=1e-5)
    assert "<table>" in (tmp_path / "report.html").read_text()


def test_a_configuration_without_lower_tiers_has_nothing_to_write_back() -> None:
    assert yaml.safe_load(rewritten("io: {queue: 128}", [], Chunk(0, 1, 1, 1))) == {
        "io": {"queue": 128}
    }


def test_a_configured_depth_does_not_bound_what_is_measured(tmp_path: Path) -> None:
    slow = {"kind": "slow", "read_s": 0.02}
    far = {"name": "far", "kind": "memory", "capacity": "4MiB", "depth": 2, "wrappers": [slow]}
    tier = load({"tiers": [{"kind": "dram"}, far]}).tiers[1]
    points = measure(tier, CHUNK, threads=8, depths=(8,), nbytes=1)
    read = next(point for point in points if point.way == "read")
    assert read.gb_s > 3 * CHUNK / 0.02 / 1e9  # of eight at a time; two would make 2
