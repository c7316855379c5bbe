"""An engine on a disk that goes bad at a word, and what is true after every fault."""

import json
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kvtier.demo.process import session
from kvtier.types import PAGE
from tests.engine import damage
from tests.engine.conftest import EngineFactory
from tests.engine.faults import FILLER
from tests.engine.harness import Answer, Engine, EngineConfig
from tests.engine.models import prompts
from tests.engine.scenarios import TOKENS, Reference
from tests.patience import until

CHUNK = 128  # tokens: one block
SLOT = 512 << 10  # bytes of a chunk
RECORD = SLOT + PAGE
DEADLINE_S = 10.0  # a hundred times what any read takes that does not hang
DISK_NBYTES = 128 << 20

ASKED = prompts(16, 8 * CHUNK + 20, seed=71)  # 8 chunks each
LONG = prompts(1, 16 * CHUNK + 20, seed=72)[0]
SHARED = prompts(3, 12 * CHUNK + 20, seed=73, shared=8 * CHUNK)
COMMON = SHARED[0][: 8 * CHUNK + 20]
EVERY = [*ASKED, LONG, *SHARED, COMMON]


class Disk:
    """A directory for a file tier; a small file system of its own where mounts are allowed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self.control = folder / "faults.json"
        self.path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_NBYTES},mode=700", "kvtier-test"]
        done = subprocess.run([*mount, self.path], capture_output=True, check=False)
        self.mounted = done.returncode == 0

    def fail(self, **faults: object) -> None:
        """Let reads and writes go wrong from now on, as `kvtier.tiers.wrappers.Faults` says; nothing: no more."""
        new = self.control.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.replace(self.control)

    def fill(self, left: int) -> None:
        """Leave so many bytes free; where it is no file system of its own the test is skipped."""
        if not self.mounted:
            pytest.skip("mounting a small file system is not allowed here")
        with (self.path / "ballast").open("wb") as file:
            found = os.statvfs(self.path)
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - left)

    def free(self) -> None:
        """Take that away."""
        (self.path / "ballast").unlink(missing_ok=True)

    def records(self) -> set[Path]:
        """Every record."""
        return set(self._found("*/r0/??/*.kvt"))

    def partial(self) -> list[Path]:
        """Everything that is half written."""
        return [path for path in self.path.rglob("*partial*") if not path.is_dir()]

    def weigh(self) -> int:
        """Sum the bytes of all records, whole or half written, at one moment: two looks in a row agree."""
        before, now = None, self.sizes()
        while now != before:
            before, now = now, self.sizes()
        return sum(now.values())

    def sizes(self) -> dict[int, int]:
        """List bytes by inode: a record that is renamed meanwhile is one."""
        sizes = {}
        for path in self._found("*/r0/*/*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                sizes[found.st_ino] = found.st_size
        return sizes

    def _found(self, pattern: str) -> list[Path]:
        """List what is there; again, if a directory goes meanwhile."""
        while True:
            with suppress(FileNotFoundError, NotADirectoryError):
                return list(self.path.glob(pattern))

    def leave_partial(self) -> None:
        """Leave what a process leaves that dies inside a write."""
        (folder,) = self.path.glob("*/r0/partial")
        (folder / f"{'ab' * 20}.7.partial").write_bytes(bytes(5000))

    def assert_whole(self) -> None:
        """Assert that every record is what it says, byte for byte."""
        for path in self.records():
            header, _ = damage.load(path)
            assert header.key.hex() == path.stem
            assert header.namespace == path.parents[2].name

    def close(self) -> None:
        """Unmount it."""
        if self.mounted:
            subprocess.run(["umount", self.path], check=True)


@dataclass
class Rig:
    """The engine and its disk."""

    engine: Engine
    disk: Disk
    reference: Reference
    tokens: int = TOKENS  # of an answer

    def ask(self, *asked: list[int]) -> list[Answer]:
        """Run prompts at once; the answers are vLLM's own, whatever happened."""
        answers = self.engine.answers(asked, self.tokens)
        assert [answer.tokens for answer in answers] == self.right(*asked)
        return answers

    def right(self, *asked: list[int]) -> list[list[int]]:
        """What vLLM alone answers."""
        return [tokens[: self.tokens] for tokens in self.reference.of(asked)]

    def cached(self, prompt: list[int]) -> int:
        """Run one prompt, read back whatever that costs, and return how many chunks were not computed."""
        self.trust()
        return self.ask(prompt)[0].cached // CHUNK

    def settle(self) -> None:
        """Wait until nothing is under way and the disk serves."""
        left = self.engine.call("tests.engine.faults:settle")
        assert not left, left

    def cool(self) -> None:
        """Leave what is cached on disk only."""
        self.settle()
        assert self.engine.reset()
        self.engine.call("tests.engine.faults:cool")
        self.settle()  # what had no record yet has one now
        assert self.engine.call("tests.engine.faults:tier0") == 0
        self.trust()

    def trust(self) -> None:
        """Have the next hit read, however slow this machine has become."""
        self.engine.call("tests.engine.faults:trust")

    def stored(self, prompt: list[int]) -> list[Path]:
        """Leave a prompt's chunks on disk only and return their records, in order."""
        before = self.disk.records()
        self.ask(prompt)
        self.cool()
        return damage.in_order(self.disk.records() - before)

    def wait_for(self, name: str, more_than: float) -> None:
        """Step until a number of the disk's has grown."""
        step = partial(self.engine.generate, [FILLER], 1)
        until(lambda: self.count(name) > more_than, f"{name} is more than {more_than:g}", step)

    def count(self, name: str, **labels: str) -> float:
        """Return one of kvtier's numbers; those of a tier are of the disk."""
        if name.startswith("tier_"):
            labels["tier"] = "nvme"
        told = ",".join(f'{k}="{v}"' for k, v in sorted(labels.items()))
        return self.engine.metrics().get(f"kvtier:{name}" + (f"{{{told}}}" if told else ""), 0)

    def scribble(self) -> None:
        """Overwrite every slot of tier 0, through the descriptor of the worker's memory."""
        links = [
            link
            for pid in session(self.engine.process.pid)
            for link in Path(f"/proc/{pid}/fd").iterdir()
            if "memfd:kvtier" in os.readlink(link)
        ]
        noise = np.random.default_rng(0).standard_normal(SLOT // 4, dtype=np.float32).tobytes()
        with links[0].open("r+b") as file, mmap.mmap(file.fileno(), 0) as arena:
            for start in range(0, len(arena), SLOT):
                arena[start : start + SLOT] = noise

    def failures(self, cause: str) -> float:
        """Return how many operations on the disk failed so."""
        return self.count("tier_failures_total", cause=cause)

    def io_pid(self) -> int | None:
        """Return the I/O process, if there is one now."""
        for pid in session(self.engine.process.pid):
            if b"kvtier.io_process.main" in _command(pid):
                return pid
        return None

    def kill_io(self) -> int:
        """Kill the I/O process and return what its id was."""
        pid = self.io_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid

    def assert_well(self) -> None:
        """Assert that the fault left no trace: every pin and slot is back, every table right."""
        self.disk.fail()
        self.settle()
        self.engine.call("tests.engine.faults:check_brain")
        gauges = (
            "pinned_chunks",
            "reading_chunks",
            "quarantined_slots",
            "off",
            "tier_resting",
            "tier_in_flight",
        )
        assert {name: self.count(name) for name in gauges} == dict.fromkeys(gauges, 0)
        assert self.disk.partial() == []
        self.disk.assert_whole()


def config(model: Path, disk: Disk, *, slots: int = 32, capacity: int = 1 << 30) -> EngineConfig:
    """Make the engine: few slots, and the disk behind a wrapper that fails on demand."""
    nvme = {
        "name": "nvme",
        "kind": "file",
        "path": str(disk.path),
        "capacity": capacity,
        "write": "through",
        "deadline": f"{DEADLINE_S}s",
        "wrappers": [{"kind": "faulty", "control": str(disk.control)}],
    }
    tiers = [{"name": "dram", "kind": "dram", "capacity": slots * SLOT}, nvme]
    kvtier = {"chunk_tokens": CHUNK, "tiers": tiers}
    return EngineConfig(model=model, blocks=40, kvtier=kvtier, in_process=True)


def rig(
    engine: EngineFactory, made: EngineConfig, disk: Disk, reference: Reference
) -> Iterator[Rig]:
    """Give the running engine to a test, and check afterwards that it is well."""
    disk.fail()
    one = Rig(engine(made), disk, reference)
    one.settle()
    yield one
    if one.engine.process.poll() is None:
        one.assert_well()


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
