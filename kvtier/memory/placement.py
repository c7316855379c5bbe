"""On which NUMA node memory is, and should be: bind it, fill it in, ask where it really is.

Direct system calls, so that libnuma is not needed. A container's seccomp profile may refuse any of them:
that is an answer in words, and memory is then where the kernel puts it.
"""

import ctypes
import errno
import os
import platform
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from kvtier.types import PAGE

HUGE_PAGE = 2 << 20

# include/uapi/asm-generic/unistd.h and arch/x86/entry/syscalls/syscall_64.tbl
_CALLS = {
    "x86_64": {"mbind": 237, "set_mempolicy": 238, "move_pages": 279},
    "aarch64": {"mbind": 235, "set_mempolicy": 237, "move_pages": 239},
}
# include/uapi/linux/mempolicy.h
_DEFAULT, _PREFERRED, _INTERLEAVE = 0, 1, 3
_MAX_NODES = 1024
_MADV_POPULATE_WRITE = 23


class Placement(NamedTuple):
    """Where a sample of a mapping's pages is."""

    nodes: tuple[tuple[int, int], ...]  # node and pages there
    absent: int  # pages that nobody has touched yet
    error: str = ""  # why nothing is known

    @property
    def present(self) -> int:
        """Pages that are somewhere."""
        return sum(n for _, n in self.nodes)

    def spread(self, nbytes: int) -> list[tuple[int, int]]:
        """Estimate the bytes on each node of a mapping of `nbytes` that this is a sample of."""
        sampled = self.present + self.absent
        return [(node, nbytes * n // sampled) for node, n in self.nodes]

    def share(self, nodes: Sequence[int]) -> float:
        """Which part of the pages that are there is on these nodes; 1 where none is there yet."""
        here = sum(n for node, n in self.nodes if node in nodes)
        return here / self.present if self.present else 1.0


def bind(address: int, nbytes: int, nodes: Sequence[int]) -> str:
    """Ask for a mapping's future pages on `nodes`, spread over them; return why that failed, or nothing.

    A full node lends from others: memory that is far is slow, a process killed for memory is worse.
    For a shared mapping it holds in every process, whatever memory policy that process has.
    """
    policy = _PREFERRED if len(nodes) == 1 else _INTERLEAVE
    return _call("mbind", address, nbytes, policy, _mask(nodes), _MAX_NODES, 0)


def prefer(node: int | None) -> str:
    """Take this thread's memory from `node`, None: from where it runs; return why that failed, or nothing."""
    if node is None:
        return _call("set_mempolicy", _DEFAULT, None, 0)
    return _call("set_mempolicy", _PREFERRED, _mask([node]), _MAX_NODES)


def populate(address: int, nbytes: int) -> str:
    """Have every page of a mapping there, written; blocks without the GIL. Return why that failed, or nothing."""
    if _libc().madvise(_pointer(address), ctypes.c_size_t(nbytes), _MADV_POPULATE_WRITE):
        return f"madvise: {os.strerror(ctypes.get_errno())}"
    return ""


def locate(address: int, nbytes: int, samples: int = 1024) -> Placement:
    """Ask the kernel on which node the pages of a mapping are: all of them, or `samples` evenly spaced."""
    pages = nbytes // PAGE
    count = min(pages, samples)
    spots = (ctypes.c_void_p * count)(*(address + i * pages // count * PAGE for i in range(count)))
    answers = (ctypes.c_int * count)()
    if error := _call("move_pages", 0, count, spots, None, answers, 0):
        return Placement((), 0, error)
    found = Counter(answers)
    # A page that was only ever read is the kernel's one page of zeros, which it calls a fault.
    absent = sum(found.pop(-code, 0) for code in (errno.ENOENT, errno.EFAULT))
    return Placement(tuple(sorted((n, c) for n, c in found.items() if n >= 0)), absent)


def _mask(nodes: Sequence[int]) -> ctypes.Array[ctypes.c_ulong]:
    mask = (ctypes.c_ulong * (_MAX_NODES // 64))()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    return mask


def _call(name: str, *arguments: object) -> str:
    number = _CALLS.get(platform.machine(), {}).get(name)
    if number is None:
        return f"{name}: not known on {platform.machine()}"
    words = [_pointer(a) if isinstance(a, int) else a for a in arguments]
    if _libc().syscall(ctypes.c_long(number), *words):
        return f"{name}: {os.strerror(ctypes.get_errno())}"
    return ""


def _pointer(value: int) -> ctypes.c_void_p:
    """Widen a number to a register: ctypes would pass 32 bits of it."""
    return ctypes.c_void_p(value)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
