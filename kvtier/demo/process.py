"""Subprocesses that leave nothing behind: each starts a session, and a session ends as a whole."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

KILL_S = 5.0


def session(sid: int) -> list[int]:
    """List the processes of session `sid` that still run, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its_sid = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_sid) == sid and state != "Z":
                found.append(int(path.parent.name))
    return found


def end_session(process: "subprocess.Popen[bytes]", grace_s: float = 0.0) -> list[str]:
    """Reap `process` and kill what is left of its session after `grace_s`; return what that was."""
    deadline = time.monotonic() + grace_s
    while (left := session(process.pid)) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.02)
    killed = [f"{pid} {_command(pid)}" for pid in left]
    deadline = time.monotonic() + KILL_S
    while (left := session(process.pid)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILL_S)  # a leader looks like a zombie while its threads still die
    return killed


def _command(pid: int) -> str:
    with suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    return ""
