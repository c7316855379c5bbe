"""Run Python where the kernel refuses system calls, as a container's seccomp profile makes it."""

import ctypes
import platform
import struct
import subprocess
import sys

from tests.patience import HANG_S

NUMBERS = {
    "x86_64": {"mbind": 237, "set_mempolicy": 238, "move_pages": 279, "io_uring_setup": 425},
    "aarch64": {"mbind": 235, "set_mempolicy": 237, "move_pages": 239, "io_uring_setup": 425},
}
REFUSED = ("mbind", "set_mempolicy", "move_pages", "io_uring_setup")
EPERM = 1


def seal() -> None:
    """Refuse the calls of `REFUSED` to this process and its children, for ever."""
    numbers = [NUMBERS[platform.machine()][name] for name in REFUSED]
    n = len(numbers)
    program = [(0x20, 0, 0, 0)]  # load the call's number
    program += [(0x15, n - i, 0, number) for i, number in enumerate(numbers)]  # equal: to the end
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | EPERM)]  # allow; refuse
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filters = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    zeros = [ctypes.c_ulong(0)] * 3
    assert libc.prctl(38, ctypes.c_ulong(1), *zeros) == 0  # no new privileges
    assert libc.prctl(22, ctypes.c_ulong(2), filters, *zeros[:2]) == 0, ctypes.get_errno()


def run_sealed(code: str) -> str:
    """Run `code` in a sealed process and return what it printed."""
    script = f"from tests.sealed import seal; seal()\n{code}"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return done.stdout
