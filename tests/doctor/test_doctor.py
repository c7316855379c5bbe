"""What the doctor says of machines that are recorded, and of this one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvtier.cli.doctor import examine
from kvtier.config import Config, load
from kvtier.doctor import devices, disks, engines, memory, probes, software
from kvtier.doctor.finding import Finding, Level, Patient
from tests import trees
from tests.mounts import small_disk
from tests.patience import HANG_S
from tests.sealed import run_sealed
from tests.trees import GIB


def said(findings: Iterable[Finding]) -> list[tuple[Level, str]]:
    return [(finding.level, finding.what) for finding in findings]


def worst(findings: Iterable[Finding]) -> Finding:
    order = [Level.OK, Level.WARN, Level.FAIL]
    return max(findings, key=lambda finding: order.index(finding.level))


def test_gpus_with_their_node_and_link(tmp_path: Path) -> None:
    found = said(devices.gpus(Patient(trees.two_sockets(tmp_path))))
    link = "x16 of x16, 2.5 of 32 GT/s (63 GB/s at most), slowed down while idle"
    assert found[2] == (Level.OK, f"NVIDIA 0000:9c:00.0 on node 1, {link}")
    assert len(found) == 4


def test_missing_lanes_are_a_warning_with_advice(tmp_path: Path) -> None:
    (finding,) = devices.gpus(Patient(trees.sub_numa(tmp_path)))
    assert finding.level is Level.WARN
    assert "x8 of x16" in finding.what
    assert "riser" in finding.advice


def test_drives_that_are_far_from_every_gpu(tmp_path: Path) -> None:
    patient = Patient(trees.sub_numa(tmp_path))
    assert said(devices.drives(patient))[0][1].startswith("nvme0 SAMSUNG")
    (finding,) = memory.neighbours(patient)
    assert (finding.level, finding.what) == (Level.WARN, "nvme0 is on node 3, no GPU is")
    assert not list(memory.neighbours(Patient(trees.two_sockets(tmp_path / "2"))))


def test_cxl_memory_that_is_a_node_is_well(tmp_path: Path) -> None:
    patient = Patient(trees.cxl(tmp_path))
    assert said(devices.cxl(patient)) == [
        (Level.OK, "mem0: 128GiB volatile, 0B persistent"),
        (Level.OK, "region0: 128GiB of ram, in use as node 1"),
    ]
    assert "no processors" in said(memory.nodes(patient))[1][1]
    assert "the firmware says 240 ns, 28 GB/s" in said(memory.nodes(patient))[1][1]


def test_cxl_memory_that_is_no_node_says_how_to_make_it_one(tmp_path: Path) -> None:
    trees.cxl(tmp_path)
    (tmp_path / "sys/devices/system/node/node1/cpulist").write_text("16-31\n")
    assert worst(devices.cxl(Patient(tmp_path))).advice.startswith("make it system RAM: daxctl")


def test_persistent_cxl_memory_needs_a_namespace_first(tmp_path: Path) -> None:
    patient = Patient(trees.cxl_persistent(tmp_path))
    what = "region0: 256MiB of pmem"
    assert said(devices.cxl(patient))[1] == (Level.OK, f"{what}, in use as node 3")
    (tmp_path / "sys/bus/nd/devices/region0/dax0.0/dax0.0/target_node").unlink()
    found = worst(devices.cxl(patient))
    assert found.what == f"{what} is no NUMA node with memory"
    assert found.advice.startswith("ndctl create-namespace --mode=devdax --region=region0, then")


def test_cxl_devices_without_a_region(tmp_path: Path) -> None:
    trees.cxl(tmp_path)
    (tmp_path / "sys/bus/cxl/devices/region0").unlink()
    assert worst(devices.cxl(Patient(tmp_path))).what == "devices, and no region made of them"


def test_other_tools_are_held_against_the_kernel(tmp_path: Path) -> None:
    answers = {
        "numactl": "available: 2 nodes (0-1)\nnode 0 cpus: 0 1\n",
        "cxl": '[{"memdev": "mem0"}]',
        "daxctl": '[{"chardev": "dax0.0", "target_node": 2, "mode": "devdax"}]',
    }

    def run(command: Sequence[str]) -> str | None:
        return answers.get(command[0])

    patient = Patient(trees.cxl(tmp_path))
    assert [level for level, _ in said(devices.cross_check(patient, run))] == [
        Level.OK,
        Level.OK,
        Level.WARN,  # a node that is not online
    ]
    answers["numactl"] = "available: 1 nodes (0)\n"
    answers["cxl"] = "nonsense"
    levels = [level for level, _ in said(devices.cross_check(patient, run))]
    assert levels == [Level.WARN, Level.WARN, Level.WARN]
    answers.clear()
    assert not list(devices.cross_check(patient, run))


def test_nothing_readable_is_a_warning_not_an_error(tmp_path: Path) -> None:
    patient = Patient(tmp_path)
    running = (engines.servers, engines.arenas)
    for check in (devices.gpus, devices.drives, devices.cxl, memory.neighbours, *running):
        assert all(finding.level is Level.OK for finding in check(patient)), check
    assert [level for level, _ in said(memory.nodes(patient))] == [Level.WARN]
    assert worst(memory.huge_pages(patient)).level is Level.WARN


@pytest.mark.parametrize(
    ("capacity", "level"),
    [("16GiB", Level.OK), ("28GiB", Level.WARN), ("40GiB", Level.FAIL)],
)
def test_capacities_against_the_container(tmp_path: Path, capacity: str, level: Level) -> None:
    config = load({"tiers": [{"kind": "dram", "capacity": capacity}]})
    (finding,) = memory.room(Patient(trees.container(tmp_path), config))
    assert finding.level is level
    assert "24GiB are free, the container's limit is 32GiB" in finding.what


def test_the_memory_tier_counts_too(tmp_path: Path) -> None:
    tiers = [
        {"kind": "dram", "capacity": "16GiB"},
        {"name": "far", "kind": "memory", "capacity": "30GiB"},
    ]
    (finding,) = memory.room(Patient(trees.container(tmp_path), load({"tiers": tiers})))
    assert (finding.level, finding.what[:16]) == (Level.FAIL, "46GiB configured")


def test_numa_of_the_arena_against_the_gpus(tmp_path: Path) -> None:
    config = load({"tiers": [{"kind": "dram", "capacity": "1GiB", "numa": 0}]})
    trees.sub_numa(tmp_path)
    found = said(memory.neighbours(Patient(tmp_path, config)))
    assert found[0] == (Level.WARN, "tiers[0].numa: [0], and the GPUs are on ['2']")


def test_huge_pages(tmp_path: Path) -> None:
    assert said(memory.huge_pages(Patient(trees.one_socket(tmp_path)))) == [
        (Level.OK, "node 0: 2 of 4 huge pages of 2MiB are free")
    ]


@pytest.mark.parametrize(
    ("version", "level"),
    [("0.30.2", Level.FAIL), ("0.31.0", Level.OK), ("0.33.1rc1", Level.OK), ("0.34", Level.FAIL)],
)
def test_versions_of_vllm(version: str, level: Level) -> None:
    found = software.judge_vllm("vllm", version)
    assert found.level is level
    assert (engines.SIGN_OF_LIFE in found.advice) == (level is Level.OK)


def process(root: Path, pid: int, parent: int, command: str, maps: str = "/usr/lib/x") -> None:
    trees.write(root, f"proc/{pid}/stat", f"{pid} (VLLM (x) y) S {parent} 9 9 0 -1")
    trees.write(root, f"proc/{pid}/cmdline", command)
    trees.write(root, f"proc/{pid}/maps", f"7f00-7f80 rw-s 00000000 00:01 7 {maps}")


def test_a_server_that_is_told_to_run_kvtier_and_does_not_is_found(tmp_path: Path) -> None:
    serve = 'vllm serve m --kv-transfer-config {"kv_connector":"KVTierConnector"}'
    process(tmp_path, 10, 1, f"sh -c {serve}")
    process(tmp_path, 11, 10, serve.replace(" ", "\0"))
    process(tmp_path, 12, 11, "VLLM::EngineCore")
    process(tmp_path, 13, 12, "VLLM::Worker_TP0")
    process(tmp_path, 20, 1, "grep KVTierConnector")
    process(tmp_path, 21, 1, "vllm serve other", "/memfd:kvtier (deleted)")
    patient = Patient(tmp_path)
    (lost,) = engines.servers(patient)
    assert (lost.level, lost.what.startswith("process 11 is told")) == (Level.WARN, True)
    assert engines.SIGN_OF_LIFE in lost.advice
    assert "--kv-offloading-size" in lost.advice
    process(tmp_path, 13, 12, "VLLM::Worker_TP0", "/memfd:kvtier (deleted)")
    what = "process 11: kvtier runs in it; arenas in 13"
    assert said(engines.servers(patient)) == [(Level.OK, what)]


@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize(
    ("outer", "kills"),
    [
        ({"kv_connector": "MultiConnector"}, True),
        ({"kv_connector": "MultiConnector", "kv_load_failure_policy": "fail"}, True),
        ({"kv_connector": "MultiConnector", "kv_load_failure_policy": "recompute"}, False),
        ({"kv_connector": "KVTierConnector"}, False),
    ],
)
def test_a_policy_around_kvtier_that_lets_requests_fail(
    tmp_path: Path, outer: dict[str, object], kills: bool, equals: bool
) -> None:
    inner = {"kv_connector": "KVTierConnector", "kv_load_failure_policy": "recompute"}
    given = json.dumps({**outer, "kv_connector_extra_config": {"connectors": [inner]}})
    between = "=" if equals else "\0"
    command = f"vllm\0serve\0m\0--tp=1\0--kv-transfer-config{between}{given}\0--port\x001"
    process(tmp_path, 11, 1, command, "/memfd:kvtier (deleted)")
    found = [
        finding for finding in engines.servers(Patient(tmp_path)) if finding.level is Level.WARN
    ]
    assert [finding.what.startswith("process 11: a request ends") for finding in found] == (
        [True] if kills else []
    )


def test_a_command_line_that_nobody_understands_is_no_policy(tmp_path: Path) -> None:
    for pid, given in enumerate(("KVTierConnector", "[]", '{"x": "KVTierConnector"}', ""), 11):
        command = f"vllm\0--kv-transfer-config\0{given}\0KVTierConnector"
        process(tmp_path, pid, 1, command, "/memfd:kvtier (deleted)")
    found = list(engines.servers(Patient(tmp_path)))
    assert [finding.level for finding in found] == [Level.OK] * 4


def test_where_the_pages_of_a_running_engine_are(tmp_path: Path) -> None:
    trees.write(tmp_path, "proc/70/cmdline", "python\0-Pm\0kvtier.io_process.main\0005\0006")
    trees.write(tmp_path, "proc/70/stat", "70 (python) S 69 69 69 0 -1")
    lines = (
        "7f00 prefer:1 file=/memfd:kvtier\\040(deleted) mapped=3072 N0=1024 N1=2048 "
        "kernelpagesize_kB=4\n7f80 default file=/usr/lib/x N0=9 kernelpagesize_kB=4"
    )
    trees.write(tmp_path, "proc/69/numa_maps", lines)
    patient = Patient(tmp_path)
    assert said(engines.arenas(patient)) == [
        (Level.OK, "process 69: arena: 4MiB on node 0, 8MiB on node 1")
    ]
    (tmp_path / "proc/69/numa_maps").unlink()
    assert said(engines.arenas(patient))[0][0] is Level.WARN


def files(capacity: int, *paths: Path) -> Config:
    """Make a configuration with a file tier at each path."""
    each = [
        {"name": f"f{i}", "kind": "file", "path": str(path), "capacity": f"{capacity}B"}
        for i, path in enumerate(paths)
    ]
    return load({"tiers": [{"kind": "dram"}, *each]})


class TestDisks:
    def test_a_directory_that_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "a.kvt").write_bytes(bytes(4096))
        found = list(disks.paths(Patient(config=files(4096, tmp_path))))
        assert worst(found).level in (Level.OK, Level.WARN)  # of the file system of /tmp
        assert "4KiB of records, for 4KiB" in found[-1].what
        assert [file.name for file in tmp_path.iterdir()] == ["a.kvt"]

    def test_more_than_is_free(self, tmp_path: Path) -> None:
        (last,) = disks.rooms(files(1 << 60, tmp_path / "not there"))
        assert (last.level, last.advice[:24]) == (Level.WARN, "the tier will hold what ")

    def test_tiers_of_one_disk_are_added(self, tmp_path: Path) -> None:
        (room,) = disks.rooms(files(1 << 20, tmp_path / "a", tmp_path / "b"))
        assert room.area == f"disk {tmp_path / 'a'}, {tmp_path / 'b'}"
        assert "for 2MiB" in room.what

    def test_what_cannot_be_used_is_a_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read_only = SimpleNamespace(f_flag=os.ST_RDONLY)
        monkeypatch.setattr(os, "statvfs", lambda _: read_only)
        (found,) = disks.look(tmp_path)
        assert (found.level, found.what) == (
            Level.FAIL,
            f"{tmp_path} is on a read-only file system",
        )

        def broken(_: Path) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "statvfs", broken)
        (found,) = disks.look(tmp_path)
        assert (found.level, "Input/output error" in found.what) == (Level.FAIL, True)
        (found,) = disks.rooms(files(4096, tmp_path))
        assert (found.level, "Input/output error" in found.what) == (Level.FAIL, True)

    def test_a_full_disk_is_said_to_be_full(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "small", "size=64k") as disk:
            disk.fill()
            found = list(disks.look(disk.path))
        full = "nothing can be written: No space left on device"
        assert [each.what for each in found if each.level is Level.WARN] == ["on tmpfs", full]

    def test_overlayfs_is_named(self, tmp_path: Path) -> None:
        line = "29 1 0:27 / / rw - overlay overlay rw"
        trees.write(tmp_path, "proc/self/mountinfo", line)
        first = next(iter(disks.look(tmp_path, tmp_path)))
        assert (first.level, first.what) == (Level.WARN, "on overlay")
        assert "mount a volume" in first.advice

    def test_a_disk_that_rotates(self, tmp_path: Path) -> None:
        trees.write(tmp_path, "sys/devices/pci0/sda/queue/rotational", 1)
        trees.write(tmp_path, "sys/devices/pci0/sda/sda1/partition", 1)
        trees.link(tmp_path, "sys/dev/block/8:1", "sys/devices/pci0/sda/sda1")
        assert disks.rotational("8:1", tmp_path)
        assert not disks.rotational("8:2", tmp_path)

    def test_what_takes_no_direct_io_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.open

        def refusing(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
            if flags & os.O_DIRECT:
                raise OSError(22, "Invalid argument")
            return real(path, flags, mode, **more)

        monkeypatch.setattr(os, "open", refusing)
        assert "no O_DIRECT: Invalid argument" in [each.what for each in disks.look(tmp_path)]

    def test_a_directory_of_others_is_a_failure(self) -> None:
        nobody, root = 65534, os.geteuid() == 0
        try:
            if root:  # who may write everywhere
                os.setresuid(nobody, nobody, 0)
            first = next(iter(disks.look(Path("/proc/1/x"))))
        finally:
            if root:
                os.setresuid(0, 0, 0)
        assert first.level is Level.FAIL


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_NBYTES", 16 << 20)
    found = list(probes.binding(Patient()))
    assert found
    assert all("GB/s on one core" in each.what for each in found if "are free" not in each.what)


def test_under_seccomp_it_warns_and_says_what_to_do() -> None:
    text = run_sealed(
        "from kvtier.doctor import probes, software\n"
        "from kvtier.doctor.finding import Patient\n"
        "probes._NBYTES = 16 << 20\n"
        "for check in (probes.binding, software.kernel):\n"
        "    for f in check(Patient()): print(f.level, f.what, f.advice, sep='|')"
    )
    lines = [line for line in text.splitlines() if line.startswith("WARN")]
    assert len(lines) == 2
    assert "mbind: Operation not permitted" in lines[0]
    assert "SYS_NICE" in lines[0]
    assert "io_uring: Operation not permitted" in lines[1]


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(patient: Patient) -> list[Finding]:
        raise ZeroDivisionError

    monkeypatch.setattr("kvtier.cli.doctor.CHECKS", (broken,))
    (finding,) = examine(None)
    assert (finding.level, finding.what) == (Level.WARN, "could not look: ZeroDivisionError()")


def test_json_and_the_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "kvtier.yaml"
    file.write_text("tiers: [{kind: dram, capcity: 1GiB}]")
    command = [sys.executable, "-m", "kvtier.cli", "doctor", "--json", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert (found[0]["area"], found[0]["level"]) == ("config", "FAIL")
    assert "did you mean 'capacity'?" in found[0]["what"]
    assert {"vllm", "numa", "placement", "memory"} <= {each["area"] for each in found}


def test_the_limit_is_the_recorded_one(tmp_path: Path) -> None:
    config = load({"tiers": [{"kind": "dram", "capacity": 8 * GIB}]})
    assert worst(memory.room(Patient(trees.container(tmp_path), config))).level is Level.OK
