"""`kvtier bench tiers`: it measures what is configured, cleans up, and recommends what its figures say."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kvtier.cli import bench_tiers
from kvtier.cli.main import build
from kvtier.cli.room import Chunk
from kvtier.cli.tuned import tuned
from kvtier.config import MediumConfig, load
from kvtier.config.structs import MOST_THREADS
from kvtier.errors import ConfigError, TierError
from kvtier.measure import fio, report
from kvtier.measure.advice import Advice, Choice, choose, confirmed
from kvtier.measure.fio import Cell, Disk
from kvtier.measure.tiers import Point, measure, measure_dram
from kvtier.tier import Site
from kvtier.tiers.file import FileConfig, FileTier
from tests.patience import until

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
    assert choose(points, threads=8) == Choice(4, 4, 2 << 20)  # a thread works on one at a time
    writes = [Point("nvme", 2 << 20, 8, d, "write", d, 0.0, 0.0, 1 << 20) for d in (1, 8, 32)]
    more = [point(9.0, depth=32, threads=16)]
    assert choose([*points, *more], threads=8) == Choice(16, 16, 2 << 20)
    assert (
        choose([point(3.0, depth=d) for d in (1, 32)], threads=8).depth == 2
    )  # the least there is
    assert choose([*(point(3.0, depth=d) for d in (1, 8, 32)), *writes], threads=8).depth == 8


def test_speed_is_said_as_it_was_with_what_is_recommended() -> None:
    reads = [point(g, depth=d) for g, d in ((1.0, 1), (3.2, 8))]
    writes = [
        Point("nvme", 2 << 20, 8, d, "write", g, 0.0, 0.0, 1 << 20) for g, d in ((1, 1), (2, 8))
    ]
    found = confirmed(Choice(8, 8, 2 << 20), [*reads, *writes])
    assert (found.threads, found.depth, found.chunk_nbytes) == (8, 8, 2 << 20)
    assert (found.read_gb_s, found.latency_s) == (3.2, 0.001)
    assert (found.medium.read, found.medium.write) == (1.6e9, 1e9)  # of records of half a chunk
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


@pytest.mark.slow  # the lock is retried for 10 s
def test_a_tier_that_an_engine_uses_is_refused_in_words(tmp_path: Path) -> None:
    tier = FileTier(FileConfig(path=str(tmp_path)), Site("nvme"))
    tiers = [{"kind": "dram"}, {"kind": "file", "path": str(tmp_path), "capacity": "16MiB"}]
    with pytest.raises(ConfigError, match="is in use by another engine"):
        measure(load({"tiers": tiers}).tiers[1], CHUNK, threads=2, depths=(1,), nbytes=CHUNK)
    tier.close()


@pytest.mark.skipif(not fio.installed(), reason="fio is not installed")
def test_fio_runs_within_its_room_and_leaves_nothing(tmp_path: Path) -> None:
    disk = fio.characterise(
        tmp_path,
        0.1,
        capacity=20 << 20,
        engines=("libaio", "nonsense"),
        mixes=("randrw",),
        blocks=(65536,),
        depths=(8,),
    )
    assert [(cell.engine, cell.depth) for cell in disk.cells] == [("libaio", 8)]
    assert all(cell.gb_s > 0 and cell.p99_s > 0 for cell in disk.cells)
    (refused,) = disk.refused
    assert refused.startswith("nonsense, randrw, 64KiB, depth 8: fio: ")
    assert not list(tmp_path.iterdir())
    disk = fio.characterise(tmp_path, 0.1, capacity=1 << 20)
    assert disk == Disk([], [f"{tmp_path}: there is no room for a file of 16MiB"])


def test_fio_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "fio"
    binary.write_text("#!/bin/sh\nsleep 1000 & echo $! > $0.pid; wait\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    started = tmp_path / "fio.pid"

    def hung(self: "subprocess.Popen[str]", timeout: float) -> None:
        until(lambda: started.exists() and started.read_text(), "fio starts")
        raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", hung)
    disk = fio.characterise(
        tmp_path, 0.1, engines=("libaio",), mixes=("randrw",), blocks=(65536,), depths=(8,)
    )
    assert not disk.cells
    assert "timed out" in disk.refused[0]
    child = Path(f"/proc/{started.read_text().strip()}/stat")
    until(lambda: not child.exists() or child.read_text().split()[2] == "Z", "its job ends")


def test_a_signal_that_finds_fio_gone_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for a child that ends, Python reaps it before it raises."""

    def interrupted(self: "subprocess.Popen[str]", timeout: float) -> None:
        self.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    (tmp_path / "fio").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(KeyboardInterrupt):
        fio.characterise(tmp_path, 0.01, engines=["libaio"], mixes=["randread"])


def test_the_page_has_a_heat_map_per_engine_and_mix() -> None:
    cells = [Cell("libaio", "randread", 65536, d, d / 10, 0.001) for d in (1, 8)]
    cells += [Cell("io_uring", "randread", 65536, 1, 0.4, 0.001)]
    disk = Disk(cells, ["io_uring, depth 8: <no>"])
    text = report.render([point(1.25)], {"<nvme>": disk}, "io: {threads: 4}", "here")
    assert text.count("<h3>") == 2
    assert "&lt;nvme&gt;: the disk alone" in text
    assert "<pre>io: {threads: 4}</pre>" in text
    assert "<li>io_uring, depth 8: &lt;no&gt;" in text
    assert "<td>1.25</td><td>8.00</td><td>16.00</td>" in text
    assert 'rgb(213 94 0/0.80)" title="p99 1.00 ms">0.80</td>' in text  # the best of the disk
    assert 'rgb(213 94 0/0.17)" title="p99 1.00 ms">0.10</td>' in text
    assert 'rgb(213 94 0/0.44)" title="p99 1.00 ms">0.40</td>' in text


def test_the_command_writes_back_what_it_recommends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_tiers, "_CHUNKS", (65536,))
    monkeypatch.setattr(bench_tiers, "_THREADS", (2, 8))
    model = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({**model, "torch_dtype": "bfloat16"}))
    file, out = tmp_path / "kvtier.yaml", tmp_path / "tuned.yaml"
    far = "{name: far, kind: memory, capacity: 64MiB, medium: {read: 9GiB, ratio: 0.5}}"
    file.write_text(f"tiers: [{{kind: dram, capacity: 1GiB}}, {far}]\nio: {{queue: 8192}}\n")
    command = ["bench", "tiers", "--json", "--nbytes", "1MiB"]
    command += ["--config", str(file), "--model", str(tmp_path), "--output", str(out)]
    command += ["--html", str(tmp_path / "report.html")]
    done = CliRunner().invoke(build(), command)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    (advice,) = [line for line in lines if line["result"] == "advice"]
    raw = yaml.safe_load(out.read_text())
    assert raw["io"] == {"queue": 8192, "threads": advice["threads"]}
    assert raw["chunk_tokens"] % 16 == 0
    made = load(out)
    assert made.io.threads == advice["threads"]
    assert made.tiers[1].depth == advice["depth"] <= advice["threads"]
    medium = made.tiers[1].medium
    assert medium is not None
    assert medium.ratio == 0.5  # it is the user's, of real KV
    assert medium.read == pytest.approx(advice["medium"]["read"], rel=0.001)
    assert medium.write == pytest.approx(advice["medium"]["write"], rel=0.001)
    assert medium.latency_s == pytest.approx(advice["medium"]["latency_s"], abs=1e-5)
    assert "<table>" in (tmp_path / "report.html").read_text()


def test_a_configuration_without_lower_tiers_has_nothing_to_write_back() -> None:
    assert yaml.safe_load(tuned("io: {queue: 8192}", [], Chunk(0, 1, 1, 1))) == {
        "io": {"queue": 8192}
    }


def test_a_configured_depth_does_not_bound_what_is_measured(tmp_path: Path) -> None:
    slow = {"kind": "slow", "read_s": 0.2}
    far = {"name": "far", "kind": "memory", "capacity": "4MiB", "depth": 2, "wrappers": [slow]}
    tier = load({"tiers": [{"kind": "dram"}, far]}).tiers[1]
    points = measure(tier, CHUNK, threads=8, depths=(2, 8), nbytes=1)
    two, eight = (point.gb_s for point in points if point.way == "read")
    assert eight > 2 * two  # 4 where nothing else takes time, 1 where two is the most


def test_a_tier_in_which_nothing_can_be_measured_is_refused(tmp_path: Path) -> None:
    far = {"name": "far", "kind": "memory", "capacity": "3MiB"}
    config = load({"tiers": [{"kind": "dram", "capacity": "2MiB"}, far]})
    with pytest.raises(ConfigError, match=r"tiers\[1\].capacity: 3MiB has no room for 2 x 2MiB"):
        bench_tiers.refuse_small(config, 2 << 20)
    bench_tiers.refuse_small(config, 1 << 20)
    with pytest.raises(ConfigError, match=r"tiers\[0\].capacity: 2MiB has no room for 1 x 4MiB"):
        bench_tiers.refuse_small(config, 4 << 20)


def test_memory_is_measured_without_taking_all_of_the_tier() -> None:
    far = {"name": "far", "kind": "memory", "capacity": "1TiB"}
    tier = load({"tiers": [{"kind": "dram"}, far]}).tiers[1]
    assert len(measure(tier, CHUNK, threads=2, depths=(1,), nbytes=1 << 20)) == 2
    dram = load({"tiers": [{"kind": "dram", "capacity": "1MiB"}]}).tiers[0]
    assert len(measure_dram(dram, CHUNK, 1 << 60)) == 2


def test_what_is_recommended_is_written_before_fio_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_tiers, "_CHUNKS", (65536,))
    monkeypatch.setattr(bench_tiers, "examine_disks", stopped)
    file, out = tmp_path / "kvtier.yaml", tmp_path / "tuned.yaml"
    far = "{name: far, kind: memory, capacity: 64MiB}"
    file.write_text(f"tiers: [{{kind: dram, capacity: 8MiB}}, {far}]\n")
    command = ["bench", "tiers", "--nbytes", "1MiB", "--config", str(file), "--output", str(out)]
    done = CliRunner().invoke(build(), command)
    assert done.exit_code == 130
    assert load(out).tiers[1].medium is not None


def test_more_threads_than_there_may_be_are_not_recommended() -> None:
    medium = MediumConfig(read=1e9, write=1e9)
    each = Advice("far", MOST_THREADS, 8, 65536, 1.0, 1e-4, medium)
    text = tuned("tiers: [{kind: dram}, {}, {}]", [each, each], Chunk(0, 65536, 65536, 69632))
    assert yaml.safe_load(text)["io"]["threads"] == MOST_THREADS


def test_a_failure_says_where_and_shows_what_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_tiers, "_CHUNKS", (65536,))
    path = tmp_path / "kv"
    broken = {"kind": "faulty", "read_errno": "EIO"}
    tiers = [
        {"kind": "dram", "capacity": "8MiB"},
        {"name": "far", "kind": "memory", "capacity": "64MiB"},
        {
            "name": "nvme",
            "kind": "file",
            "path": str(path),
            "capacity": "64MiB",
            "wrappers": [broken],
        },
    ]
    file = tmp_path / "kvtier.yaml"
    file.write_text(yaml.safe_dump({"tiers": tiers}))
    command = ["bench", "tiers", "--nbytes", "1MiB", "--config", str(file)]
    done = CliRunner().invoke(build(), command)
    assert isinstance(done.exception, TierError)
    assert str(done.exception).startswith(f"nvme at {path}: bench: ")
    assert "recommended, in the YAML" in done.output  # of far
    assert [entry.name for entry in path.iterdir()] == ["r0.lock"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nbytes", "lots"], "--nbytes: 'lots' is not a size"),
        (["--fio-seconds", "nan"], "--fio-seconds: nan is not from 0 to 60"),
        (["--fio-seconds", "-1"], "--fio-seconds: -1 is not from 0 to 60"),
        (["--html", "/nowhere/a.html"], "/nowhere/a.html: cannot be written"),
        (["--config", "/dev/null"], "/dev/null: not a file"),
    ],
)
def test_bad_options_are_refused_before_the_work(
    tmp_path: Path, options: list[str], said: str
) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text("tiers: [{kind: dram, capacity: 8MiB}]")
    done = CliRunner().invoke(build(), ["bench", "tiers", "--config", str(file), *options])
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)
