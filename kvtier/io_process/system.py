"""What an I/O process inherits from its worker and must not keep: memory policy, affinity, signals, preloads."""

import logging
import os
import signal
import sys
from collections.abc import Callable

from kvtier import topology
from kvtier.memory import placement

logger = logging.getLogger(__name__)

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
    if refused := placement.prefer(numa_node):
        logger.info("memory policy stays as it is: %s", refused)
    cpus = set(range(os.cpu_count() or 1))
    try:
        os.sched_setaffinity(0, cpus)  # the kernel cuts it down to what the container may use
        near = {cpu for node in topology.nodes() if node.number == numa_node for cpu in node.cpus}
        if near & os.sched_getaffinity(0):
            os.sched_setaffinity(0, near & os.sched_getaffinity(0))
    except OSError as exc:
        logger.info("affinity stays at %s: %s", os.sched_getaffinity(0), exc)
