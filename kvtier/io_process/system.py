"""What an I/O process inherits from its worker and must not keep: memory policy, affinity, signals, preloads."""

import ctypes
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
_MPOL_DEFAULT = 0
_MPOL_PREFERRED = 1
_UNWANTED = ("LD_PRELOAD", "OMP_", "KMP_", "GOMP_", "MKL_")


def environment() -> dict[str, str]:
    """Build the I/O process's environment: the worker's without preloads and OpenMP, with its module path."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_UNWANTED)}
    env["OPENBLAS_NUM_THREADS"] = "1"  # numpy would start a pool that nobody uses
    env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return env


def settle(numa_node: int | None, on_term: Callable[[], None]) -> None:
    """Undo the worker's memory policy and affinity, prefer `numa_node`, and take over the signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: on_term())
    _prefer_memory_of(numa_node)
    cpus = set(range(os.cpu_count() or 1))
    try:
        os.sched_setaffinity(0, cpus)  # the kernel cuts it down to what the container may use
        if numa_node is not None:
            os.sched_setaffinity(0, _cpus_of(numa_node) & os.sched_getaffinity(0))
    except OSError as exc:
        logger.info("affinity stays at %s: %s", os.sched_getaffinity(0), exc)


def _prefer_memory_of(node: int | None) -> None:
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    policy = _MPOL_DEFAULT if node is None else _MPOL_PREFERRED
    mask = (ctypes.c_ulong * 16)()
    if node is not None:
        mask[node // 64] = 1 << node % 64
    nodes = None if node is None else mask
    if libc.syscall(number, policy, nodes, 0 if node is None else 1024):
        logger.info("memory policy stays as it is: %s", os.strerror(ctypes.get_errno()))


def _cpus_of(node: int) -> set[int]:
    text = Path(f"/sys/devices/system/node/node{node}/cpulist").read_text().strip()
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
