"""What the process is when it starts, and how it refuses to."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.errors import ConfigError
from kvtier.io_process.client import IoClient, IoSetup
from kvtier.memory.arena import Arena
from kvtier.types import OpKind, OpStatus
from tests.io_process.rig import GROUP_NBYTES, MANIFEST, SLOT_NBYTES, Rig, file_tier, rig


def refusal(tier: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as failure, rig([tier]):
        pass
    return str(failure.value)


def test_loads_neither_torch_nor_vllm(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path, "zstd")]) as io:
        maps = Path(f"/proc/{io.client.pid}/maps").read_text()
    assert "torch" not in maps
    script = "import sys, kvtier.io_process.main; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"torch", "vllm", "transformers"} & set(done.stdout.split())


def test_drops_what_the_worker_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KMP_AFFINITY", "compact")
    monkeypatch.setenv("KEEP_ME", "1")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with rig([file_tier(tmp_path)]) as io:
            assert io.client.pid
            environment = Path(f"/proc/{io.client.pid}/environ").read_bytes().split(b"\0")
            assert os.sched_getaffinity(io.client.pid) == allowed
    finally:
        os.sched_setaffinity(0, allowed)
    names = {line.split(b"=")[0] for line in environment}
    assert b"KEEP_ME" in names
    assert not {b"LD_PRELOAD", b"OMP_NUM_THREADS", b"KMP_AFFINITY"} & names


def test_inherits_the_pipe_and_the_arena_only(tmp_path: Path) -> None:
    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        with rig([file_tier(tmp_path / "kv")]) as io:
            fds = [os.readlink(f) for f in Path(f"/proc/{io.client.pid}/fd").iterdir()]
    assert sum("memfd:kvtier" in fd for fd in fds) == 1
    assert not any("secret" in fd for fd in fds)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Hold every low descriptor, as a worker of many devices or inside a trainer may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    yield
    for fd in fds:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_worker_with_1100_open_files_starts_and_restarts_it(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path)]) as io:
        assert io.arena.fd > 1023
        io.fill(1)
        assert io.one(OpKind.WRITE, 1).status is OpStatus.OK
        assert io.client.pid
        os.kill(io.client.pid, signal.SIGKILL)
        io.until(lambda: not io.client.alive)
        io.until(lambda: io.client.alive)
        assert io.one(OpKind.READ, 1, slot=2).status is OpStatus.OK


def test_a_node_of_its_own(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path)], numa_node=0) as io:
        assert io.client.alive


@pytest.mark.slow  # the lock is retried for 10 s
def test_a_directory_in_use_is_refused_in_words(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path)]) as io:
        said = refusal(file_tier(tmp_path))
        assert f"{tmp_path} is in use by another engine" in said
        assert f"pid {io.client.pid}" in said


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        ({"kind": "filee"}, "did you mean 'file'"),
        ({"codec": {"kind": "zstd", "options": {"level": "high"}}}, "codec 'zstd'"),
        ({"codec": {"kind": "zstd", "options": {"level": 99}}}, "codec 'zstd'"),
        ({"options": {"pth": "x"}}, "tier 'file'"),
        ({"options": {"path": "/proc/1/nothing"}}, "/proc/1/nothing"),
        ({"wrappers": [{"kind": "slow", "options": {"x": 1}}]}, "wrapper 'slow'"),
    ],
)
def test_a_tier_that_cannot_be_is_refused_in_words(
    tmp_path: Path, tier: dict[str, object], said: str
) -> None:
    assert said in refusal({**file_tier(tmp_path), **tier})


def test_a_process_that_dies_while_it_starts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena(4, SLOT_NBYTES)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    setup = IoSetup(
        arena_nbytes=arena.nbytes, slot_nbytes=SLOT_NBYTES, group_nbytes=GROUP_NBYTES, tiers=[]
    )
    client = IoClient(setup, arena.fd)
    with pytest.raises(ConfigError, match="ended while it started"):
        client.wait_ready()
    assert client.pid is None
    arena.close()


def test_a_process_that_hangs_while_it_starts_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    arena = Arena(4, SLOT_NBYTES)
    setup = IoSetup(
        arena_nbytes=arena.nbytes,
        slot_nbytes=SLOT_NBYTES,
        group_nbytes=GROUP_NBYTES,
        tiers=[file_tier(tmp_path)],
    )
    client = IoClient(setup, arena.fd)
    assert client.pid
    os.kill(client.pid, signal.SIGSTOP)
    client.wait_ready(0.1)
    assert not client.alive
    io = Rig(client, arena)
    io.submit(op := io.op(OpKind.OPEN, text=MANIFEST))
    assert io.one(OpKind.READ).status is OpStatus.DIED
    os.kill(client.pid, signal.SIGCONT)
    io.until(lambda: op.op in io.results)
    assert io.results[op.op].status is OpStatus.OK
    client.close()
    arena.close()
