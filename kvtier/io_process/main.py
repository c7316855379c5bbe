"""The I/O process: `python -m kvtier.io_process.main SOCKET_FD ARENA_FD`. Loads neither torch nor vllm.

The main thread alone reads and writes the pipe and never waits for a tier. EOF and SIGTERM end it
after the operations in hand.
"""

import contextlib
import logging
import os
import select
import socket
import sys
from functools import reduce

import msgspec

from kvtier import registry, topology
from kvtier.codec import Codec
from kvtier.config import Plugin, TierConfig
from kvtier.errors import ConfigError
from kvtier.io_process import system, wire
from kvtier.io_process.buffers import ArenaView
from kvtier.io_process.census import Census
from kvtier.io_process.outbox import Outbox
from kvtier.io_process.records import Records
from kvtier.io_process.service import Service
from kvtier.io_process.weights import Reader
from kvtier.io_process.wire import FrameBuffer, FrameKind, IoSetup, Ready
from kvtier.tier import Site

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18
_EXPIRE_S = 0.05  # how often deadlines are looked at while something is queued
_LEAVE_S = 5.0  # how long the operations in hand may take at the end


class Pipe:
    """This end of the worker's pipe, non-blocking after the setup. Main thread only."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unsent = b""
        self._inbox = FrameBuffer()

    def setup(self) -> IoSetup | None:
        """Wait for the first frame; None where the worker is gone already, or says something else."""
        try:
            while data := self.sock.recv(_CHUNK):
                self._inbox.feed(data)
                for frame in self._inbox.frames():
                    self.sock.setblocking(False)
                    return wire.SETUP.decode(frame.body)
        except (ConnectionError, ValueError, msgspec.MsgspecError) as exc:
            logger.warning("the worker says no setup: %s", exc)
        return None

    def receive(self, service: Service) -> bool:
        """Pass on every operation that is there; False at the end of the pipe."""
        try:
            data = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return True
        self._inbox.feed(data)
        for frame in self._inbox.frames():
            for op in wire.OPS.decode(frame.body):
                service.handle(op)
        return bool(data)

    def send(self) -> None:
        """Send what the socket takes of `unsent`."""
        with contextlib.suppress(BlockingIOError):
            self.unsent = self.unsent[self.sock.send(self.unsent) :]


def main(sock_fd: int, arena_fd: int) -> None:
    """Serve until the worker is gone."""
    outbox = Outbox()
    leaving = False

    def leave() -> None:
        nonlocal leaving
        leaving = True
        outbox.wake()

    pipe = Pipe(socket.socket(fileno=sock_fd))
    setup = pipe.setup()
    if setup is None:
        return
    logging.basicConfig(
        level=setup.log_level,
        stream=sys.stderr,
        format=f"(kvtier I/O r{setup.rank} pid=%(process)d) %(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s",
        datefmt="%m-%d %H:%M:%S",  # as vLLM writes its own lines
    )
    system.settle(setup.numa_node, leave)
    try:
        tiers = open_tiers(setup, arena_fd)
        service, census = Service(setup, tiers, outbox), Census(setup.rank, tiers)
    except (ConfigError, msgspec.ValidationError) as exc:
        pipe.sock.setblocking(True)
        pipe.sock.sendall(wire.frame(FrameKind.HELLO, Ready(str(exc))))
        return
    if setup.weights:
        Reader(setup.weights, lambda: service.busy)
    pipe.unsent = wire.frame(FrameKind.HELLO, Ready())
    try:
        while not leaving and turn(pipe, outbox, service, census):
            pass
    except (ConnectionError, ValueError, msgspec.MsgspecError) as exc:
        logger.warning("the worker's pipe broke: %s", exc)
    service.stop(_LEAVE_S)


def turn(pipe: Pipe, outbox: Outbox, service: Service, census: Census) -> bool:
    """Wait for something to do and do it; False at the end of the pipe."""
    if not pipe.unsent:
        pipe.unsent = outbox.take() + census.news()
    # While the worker does not read, nothing that is due can be told: only the pipe or a wake-up ends the wait.
    idle = None if pipe.unsent else census.patience_s
    patience = _EXPIRE_S if service.waiting else idle
    came = wait(pipe, outbox, patience)
    if outbox.fileno() in came:
        outbox.hush()
    service.expire()
    of_pipe = came.get(pipe.sock.fileno(), 0)
    if of_pipe & select.POLLOUT:
        pipe.send()
    return not of_pipe & ~select.POLLOUT or pipe.receive(service)


def wait(pipe: Pipe, outbox: Outbox, timeout_s: float | None) -> dict[int, int]:
    """Wait for the outbox, for the worker, and for room to send where some is unsent; return what came, by descriptor."""
    poll = select.poll()  # select() refuses descriptors above 1023, and the pipe's is the worker's
    poll.register(outbox.fileno(), select.POLLIN)
    poll.register(pipe.sock, select.POLLIN | (select.POLLOUT if pipe.unsent else 0))
    return dict(poll.poll(None if timeout_s is None else 1000 * timeout_s))


def open_tiers(setup: IoSetup, arena_fd: int) -> list[Records]:
    """Make every tier; its directories are locked when this returns.

    Raises:
        ConfigError: one of them cannot work.
    """
    slots = ArenaView(arena_fd, setup.arena_nbytes, setup.slot_nbytes)
    os.close(arena_fd)  # the mapping keeps one of its own
    lower = []
    spare = topology.free_nbytes() if setup.spare_nbytes is None else setup.spare_nbytes
    for builtins in setup.tiers:
        tier = msgspec.convert(builtins, TierConfig)
        once = setup.copies and registry.kept_once(tier.kind)
        keeper = setup.rank - setup.rank % setup.local_ranks if once else setup.rank
        site = Site(
            tier.name,
            keeper,
            1 if once else setup.local_ranks,
            setup.engine,
            tier.capacity or 0,
            tier.numa or (),
            spare,
            setup.engines,
        )
        codec = registry.build("codec", tier.codec)
        check_facts(tier.name, codec, setup)
        plugin, keeps = Plugin(kind=tier.kind, options=tier.options), keeper == setup.rank
        inner = (
            registry.build("tier", plugin, site) if keeps else registry.build_reader(plugin, site)
        )
        made = reduce(registry.wrap, tier.wrappers, inner)
        spare -= made.memory_nbytes
        lower.append(Records(made, codec, site, slots, setup, tier.depth, keeps=keeps))
    return lower


def check_facts(tier: str, codec: Codec, setup: IoSetup) -> None:
    """Raise a ConfigError, with the reason, if a codec cannot work on this engine's chunks."""
    for group in setup.group_nbytes:
        if why := codec.objection(setup.facts(group)):
            raise ConfigError(
                f"tier {tier!r}: its codec cannot work on KV-cache group {group}: {why}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stderr.flush()
    os._exit(0)  # a thread that hangs in a dead disk must not keep the process
