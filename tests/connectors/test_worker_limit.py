"""A worker in a container with a memory limit: a DRAM tier larger than the limit is clamped, filled, and kills nobody."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from tests.patience import HANG_S

MIB = 1 << 20
LIMIT = 400 * MIB
SCRIPT = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor
from kvtier.connectors.vllm.guard import Guard
from kvtier.connectors.vllm.ranks import Sharers
from kvtier.connectors.vllm.worker import KVTierWorker

Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
page = 64 << 10
tensor = torch.zeros((4, page), dtype=torch.int8)
caches = CanonicalKVCaches([CanonicalKVCacheTensor(tensor, page)], [[CanonicalKVCacheRef(0, page)]])
lower = {"name": "nvme", "kind": "file", "path": sys.argv[2], "capacity": "1GiB"}
config = SimpleNamespace(
    extra_config={"kvtier": {"tiers": [{"kind": "dram", "capacity": "1GiB"}, lower]}},
    cache=SimpleNamespace(blocks_per_chunk=1),
    groups=[SimpleNamespace(group_id=0)],
    model=SimpleNamespace(dtype="bfloat16"),
    parallel=SimpleNamespace(rank=0, data_parallel_index=0, data_parallel_size=1),
    engine_id="engine",
)
worker = KVTierWorker(config, caches, {}, Sharers(), Guard())
for slot in range(worker.arena.slots):
    worker.arena.slot(slot)[:] = 1
worker.arena._prefault.wait()
print(worker.arena.nbytes)
worker.shutdown()
"""


@pytest.fixture
def container() -> Iterator[Path]:
    """A memory cgroup of its own, under this process's own."""
    rows = [row.split(":", 2) for row in Path("/proc/self/cgroup").read_text().splitlines()]
    v1 = [path for _, names, path in rows if "memory" in names.split(",")]
    base, most = (
        (f"/sys/fs/cgroup/memory{v1[0]}", "memory.limit_in_bytes")
        if v1
        else (f"/sys/fs/cgroup{rows[-1][2]}", "memory.max")
    )
    folder = Path(base) / f"kvtier-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / most).write_text(str(LIMIT))
    except OSError as exc:
        pytest.skip(f"no memory cgroup can be made here: {exc}")
    yield folder
    folder.rmdir()


def test_a_tier_larger_than_the_container_is_clamped_and_nothing_is_killed(
    container: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(container), str(tmp_path / "kv")],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 100 * MIB < int(done.stdout.split()[-1]) < LIMIT
    assert "clamped to" in done.stderr
