"""Subprocesses that leave nothing behind: each starts a session, and a session ends as a whole."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

GONE_S = 30.0  # for what was killed, and for a tracker that has nobody left to serve


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
    """Reap `process` and kill what is left of its session after `grace_s`; return what that was.

    Python's resource trackers go last, and by themselves: they remove the shared memory and the
    semaphores that killed processes leave behind.
    """
    left = _wait(process, grace_s)
    killed = [f"{pid} {_command(pid)}" for pid in left]
    deadline = time.monotonic() + GONE_S
    while victims := [pid for pid in left if "resource_tracker" not in _command(pid)]:
        if time.monotonic() > deadline:
            break
        _kill(victims)
        left = _wait(process, 0.05)
    _kill(_wait(process, GONE_S))
    with suppress(subprocess.TimeoutExpired):
        process.wait(GONE_S)  # a leader looks like a zombie while its threads still die
    return killed


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> list[int]:
    """Wait until the session is empty, at most so long, and return who is left."""
    deadline = time.monotonic() + seconds
    while (left := session(process.pid)) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.02)
    return left


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> str:
    with suppress(OSError):
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        return raw.replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
