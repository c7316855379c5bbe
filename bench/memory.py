"""Memory that a server with kvtier takes at its start, with nothing cached: the arena, and the I/O process beside it."""

import time
from pathlib import Path

from _engine import dram, nvme, server_config, settle, workspace
from _report import machine, report

from kvtier.demo.process import session
from kvtier.demo.server import Server, serving

MIB = 1 << 20
TARGET = 80  # MiB
ARENA = "memfd:kvtier"
FILL_S = 10.0


def main() -> None:
    """Measure and report."""
    machine()
    with workspace() as folder:
        tiers = [dram("1GiB"), nvme(folder / "nvme", "2GiB")]
        config = server_config(folder, tiers, blocks=32, max_tokens=1024)
        with serving(config, folder / "server.log") as server:
            time.sleep(FILL_S)  # a capacity that is stated is taken at the start, in the background
            settle(server)
            tell(server)


def tell(server: Server) -> None:
    """Report what the processes of a server have."""
    arena = 0.0
    for pid in session(server.process.pid):
        mine, rest = resident(pid)
        arena += mine
        if b"kvtier.io_process.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            report("memory", "the I/O process beside the arena", rest / MIB, "MiB", TARGET)
    report("memory", "the arena, of 1 GiB that is configured", arena / MIB, "MiB", 1024)


def resident(pid: int) -> tuple[float, float]:
    """Return a process's share of the arena and of all else, in bytes."""
    arena, rest, inside = 0, 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split()[0]:
            inside = ARENA in line
        elif name == "Pss":
            nbytes = int(value.split()[0]) << 10
            arena, rest = (arena + nbytes, rest) if inside else (arena, rest + nbytes)
    return arena, rest


if __name__ == "__main__":
    main()
