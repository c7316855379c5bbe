"""A process that has imported vLLM, from which drivers are forked: else that import is half of an engine's start.

`python -m tests.engine.nursery SOCKET_FD` forks a driver for every order that comes, all with one model runner, and leaves when its
asker does. It runs nothing itself, and has one thread. What a process has from its first instruction on is that of the nursery: the
seed of Python's hashes, and the environment in so far as a module has read it when it was imported.
"""

import atexit
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from ctypes import CDLL
from functools import cache, partial
from typing import IO, Any, cast

from tests.engine import lanes

_PR_SET_CHILD_SUBREAPER = 36
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""A fork has one thread; and small models are computed faster by one that never waits for another to get a core."""
_IMPORTED = (
    "vllm.entrypoints.llm",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.core",
    "vllm.v1.engine.core_client",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "kvtier.connectors.vllm.connector",
)


class Forked(subprocess.Popen[bytes]):
    """A driver of an engine that the nursery forks: a child of this process, with a session of its own."""

    def __init__(self, lane: str, replies: int, env: Mapping[str, str], output: IO[bytes]) -> None:
        self._order = json.dumps(dict(env)).encode()
        self._v2, self._replies = lanes.LANES[lane].v2, replies
        super().__init__("a fork", stdin=subprocess.PIPE, stdout=output)

    def _execute_child(self, *given: Any) -> None:
        """Have a fork made where `Popen` would make its own; the pipe to it is one of `Popen`."""
        stdin, _, _, output = given[10:14]
        asked = _nursery(self._v2).asked
        with _Adopting():
            socket.send_fds(asked, [self._order], [stdin, output, self._replies])
            self.pid = int(asked.recv(64))
        self._child_created = True
        os.close(stdin)


class _Adopting:
    """While it lasts, orphans below this process become its children."""

    def __enter__(self) -> None:
        self._set(1)

    def __exit__(self, *exc: object) -> None:
        self._set(0)

    def _set(self, whether: int) -> None:
        if CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, whether, 0, 0, 0):
            raise OSError("this kernel lets no process adopt orphans")


class _Nursery:
    """The nursery of a model runner, as its asker has it."""

    def __init__(self, v2: bool) -> None:
        self.asked, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.engine.nursery", str(its.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                env=os.environ | lanes.environ("v2-sync" if v2 else "v1-sync") | _ONE_THREAD,
            )
        atexit.register(self.close)

    def close(self) -> None:
        """End it."""
        self.asked.close()
        self._process.wait()


_nursery = cache(_Nursery)


def _orders(asker: socket.socket) -> int | None:
    """Fork a driver for each order. Returns in each driver where it is to reply, and None when the asker has left."""
    while True:
        order, fds, _, _ = socket.recv_fds(asker, 1 << 20, 3)
        if not order:
            return None
        told, tell = os.pipe()
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            os.close(tell)
            asker.send(os.read(told, 64))
            for fd in (told, *fds):
                os.close(fd)
            continue
        if os.fork():
            os._exit(0)  # so that the driver is an orphan, whom the asker adopts
        os.setsid()
        os.write(tell, str(os.getpid()).encode())
        for fd in (told, tell):
            os.close(fd)
        asker.close()
        _become(*fds, env=json.loads(order))
        return fds[2]


def _become(stdin: int, output: int, replies: int, *, env: Mapping[str, str]) -> None:
    """Take the standard streams and the environment of a driver; what it starts has no part of its replies."""
    for fd, standard in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(fd, standard)
    os.close(stdin)
    os.close(output)
    os.set_inheritable(replies, False)
    os.register_at_fork(after_in_child=partial(os.close, replies))
    os.environ.clear()
    os.environ.update(env)
    paths = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path not in sys.path]


def _fork_engine_cores() -> None:
    """Let vLLM fork its processes from the driver, as it does where there are GPUs; for CPUs it starts Python anew."""
    import multiprocessing

    from vllm.v1.engine import utils
    from vllm.v1.executor import multiproc_executor

    context = multiprocessing.get_context("fork")
    for module in (utils, multiproc_executor):
        cast(Any, module).get_mp_context = lambda: context


def main() -> None:
    """Serve until the asker leaves; in each driver, be the driver."""
    lanes.prepare()
    for name in _IMPORTED:
        importlib.import_module(name)
    _fork_engine_cores()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
    replies = _orders(socket.socket(fileno=int(sys.argv[1])))
    if replies is not None:
        lanes.take()
        from tests.engine import driver

        driver.drive(replies)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(0)  # to free every module costs seconds


if __name__ == "__main__":
    main()
