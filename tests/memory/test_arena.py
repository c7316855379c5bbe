"""The arena is bounded, aligned, shared by descriptor and leaves nothing behind."""

import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

from kvtier.errors import ConfigError
from kvtier.memory.arena import Arena
from kvtier.memory.region import regions_of_others


def open_descriptors() -> set[str]:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return {os.readlink(link) for link in links if os.path.lexists(link)}


def test_slots_are_disjoint_views_of_one_mapping() -> None:
    arena = Arena(4, 8192)
    for i in range(4):
        arena.slot(i)[:] = i + 1
    assert [int(arena.slot(i).sum()) // 8192 for i in range(4)] == [1, 2, 3, 4]
    assert arena.slot(0).ctypes.data % 4096 == 0
    arena.close()


def test_another_mapping_of_the_descriptor_sees_the_same_bytes() -> None:
    arena = Arena(2, 4096)
    arena.slot(1)[:] = 7
    with mmap.mmap(arena.fd, 8192) as other:
        assert other[4096:] == b"\7" * 4096
        other[0:1] = b"\5"
    assert arena.slot(0)[0] == 5
    arena.close()


def test_close_leaves_the_mapping_to_its_last_view() -> None:
    before = open_descriptors()
    arena = Arena(2, 4096)
    view = arena.slot(0)
    arena.close()
    arena.close()
    assert np.all(view == 0)
    del view
    assert open_descriptors() == before


def test_it_has_no_name_in_shared_memory() -> None:
    before = os.listdir("/dev/shm")
    arena = Arena(2, 4096)
    assert os.listdir("/dev/shm") == before
    arena.close()


def test_a_capacity_below_one_chunk_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"tiers\[0\]\.capacity: no room for one chunk"):
        Arena(0, 4096)


def test_what_an_owner_has_taken_in_other_processes_is_known() -> None:
    """Each region once, however many processes hold it; what nobody touched yet is not taken."""
    script = (
        "import os, sys; from kvtier.memory.arena import Arena; a = Arena(4, 1 << 20, owner='server-1');"
        "a.slot(0)[:] = 1; b = Arena(4, 1 << 20, owner='other'); b.slot(0)[:] = 1;"
        "os.fork() and print('there', flush=True); sys.stdin.read()"
    )
    mine = Arena(2, 1 << 20, owner="server-1")
    mine.slot(0)[:] = 1
    assert regions_of_others("server-1") == []
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        ((nbytes, taken),) = regions_of_others("server-1")
        assert nbytes >= 1 << 20
        assert taken in (1 << 20, 2 << 20)  # pages may be huge ones
        assert regions_of_others("server") == []
        child.communicate()
    assert regions_of_others("server-1") == []
    mine.close()
