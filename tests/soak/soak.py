"""The loop of the soak: asks, harms, and looks whether everything is as it should be."""

import random
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from kvtier.demo.process import session
from tests.engine.harness import Answer, Engine, EngineConfig, EngineError
from tests.engine.rig import CHUNK, RECORD, SLOT, Disk
from tests.engine.scenarios import TOKENS, Reference
from tests.soak.harm import Harm
from tests.soak.prompts import POOL

CALM_S = 8.0  # of harm, between two looks at an idle engine
IDLE = {"pinned": 0, "reading": 0, "quarantined": 0, "requests": 0}
_WARM = 6  # looks at an engine before its size counts: allocators, kernels and batches of every shape come first
# oneDNN keeps what it compiled for each shape of a batch: vLLM alone grows by 250 MiB in 300 requests
_ENVIRON = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1"}
_REFUSED = "running requests waiting for remote KV transfer"
"""What vLLM answers to the caller of a reset; the engine goes on."""
_RSS_GROWTH = 96 << 20
_FDS_GROWTH = 8
_EVICTION = ("lru", "session", "s3fifo", "gdsf", "attention", "arc")
_CODECS = ("raw", "lz4", "zstd", "lossless")
_WRITES = ("through", "idle", "on_evict", "on_reuse")


class Asked(NamedTuple):
    """A request under way."""

    prompt: list[int]
    tokens: int


class Size(NamedTuple):
    """What an engine takes of the machine."""

    rss: int
    fds: int


class Soak:
    """One run. `run` raises AssertionError, or EngineError with the end of the log, for the first thing that is wrong."""

    def __init__(self, seed: int, folder: Path, model: Path, reference: Reference) -> None:
        self._rng = random.Random(seed)
        self._folder = folder
        self._model = model
        self._reference = reference
        self._disk = Disk(folder)
        self._disk.fail()
        self.done: Counter[str] = Counter()
        self._harm = Harm(self._rng, self._disk, self.done)
        self._engine: Engine | None = None
        self._capacity = self._rng.choice((12, 40, 100)) * RECORD
        self._asked: dict[str, Asked] = {}
        self._serial = 0
        self._sizes: list[Size] = []  # of this engine, at each look
        self._longest: list[Size] = []  # the same of the engine that was looked at most

    def run(self, seconds: float) -> None:
        """Go on for so long; the last look is at an engine that is idle."""
        end = time.monotonic() + seconds
        self._start()
        while time.monotonic() < end:
            calm = time.monotonic() + CALM_S
            while time.monotonic() < min(calm, end):
                self._act()
                self._weigh()
            self._look()
            if self._rng.random() < 0.06:
                self._restart()
        self._look()

    def report(self) -> dict[str, object]:
        """Say what was done, and what was seen."""
        return {
            "done": dict(sorted(self.done.items())),
            "rss_mib": [size.rss >> 20 for size in self._longest],
            "descriptors": [size.fds for size in self._longest],
        }

    def close(self) -> None:
        """End the engine and the disk, whatever they are doing."""
        self._harm.heal()
        if self._engine:
            self._engine.kill()
        self._disk.close()

    def _start(self) -> None:
        rng = self._rng
        slots = rng.choice((8, 16, 32))
        nvme = {
            "name": "nvme",
            "kind": "file",
            "path": str(self._disk.path),
            "capacity": self._capacity,
            "write": rng.choice(_WRITES),
            "codec": rng.choice(_CODECS),
            "eviction": rng.choice(_EVICTION),
            "deadline": "1s",
            "wrappers": [{"kind": "faulty", "control": str(self._disk.control)}],
        }
        dram = {"kind": "dram", "capacity": slots * SLOT, "eviction": rng.choice(_EVICTION)}
        kvtier = {
            "chunk_tokens": CHUNK,
            "load": rng.choice(("auto", "always")),
            "prefetch": rng.choice(([], ["arrival"], ["reuse_distance"])),
            "tiers": [dram, nvme],
        }
        self.done["engine: start"] += 1
        log = self._folder / f"engine-{self.done['engine: start']}.log"
        config = EngineConfig(
            model=self._model, blocks=40, kvtier=kvtier, in_process=True, env=_ENVIRON
        )
        self._engine = Engine(config, log)
        self._sizes = []

    def _restart(self) -> None:
        assert self._engine
        if self._rng.random() < 0.5:
            self.done["engine: SIGKILL"] += 1
            self._engine.kill()
        else:
            self.done["engine: end"] += 1
            self._engine.close()
        self._asked.clear()
        self._start()

    def _act(self) -> None:
        """Do one thing."""
        assert self._engine
        self._harm.pass_time()
        what = self._rng.choices(
            (self._ask, self._step, self._abort, self._finish, self._reset, self._harm.records,
             self._harm.faults, self._harm_process, self._harm.full, self._harm.directory),
            (30, 30, 6, 8, 3, 8, 3, 3, 1, 1),
        )[0]  # fmt: skip
        what()

    def _harm_process(self) -> None:
        assert self._engine
        self._harm.process(self._engine.process.pid)

    def _ask(self) -> None:
        assert self._engine
        if len(self._asked) > 12:
            return self._finish()
        self._serial += 1
        name = f"r{self._serial}"
        asked = Asked(self._rng.choice(POOL), self._rng.randrange(1, TOKENS + 1))
        self._asked[name] = asked
        self._engine.add(name, asked.prompt, asked.tokens)
        self.done["requests"] += 1
        return None

    def _step(self) -> None:
        assert self._engine
        for _ in range(self._rng.choice((1, 1, 3, 10))):
            if self._asked:
                self._compare(self._engine.step())

    def _abort(self) -> None:
        assert self._engine
        if self._asked:
            name = self._rng.choice(sorted(self._asked))
            self._engine.abort(name)
            del self._asked[name]
            self.done["aborts"] += 1

    def _finish(self) -> None:
        assert self._engine
        self._compare(self._engine.drain())
        assert not self._asked, f"never answered: {sorted(self._asked)}"

    def _reset(self) -> None:
        assert self._engine
        running, connector = self._rng.random() < 0.5, self._rng.random() < 0.4
        try:
            self._engine.reset(running=running, connector=connector)
        except EngineError as exc:
            if _REFUSED not in str(exc):
                raise
            self.done["reset: vLLM refuses it, for a load is under way"] += 1
        else:
            self.done[f"reset: running={running}, connector={connector}"] += 1

    def _compare(self, answers: dict[str, Answer]) -> None:
        """Assert that every answer, finished or not, is what vLLM alone says."""
        for name, answer in answers.items():
            asked = self._asked.get(name)
            if asked is None:  # aborted
                continue
            right = self._reference.of([asked.prompt])[0][: asked.tokens]
            assert answer.tokens == right[: len(answer.tokens)], f"{name}: WRONG TOKENS"
            if answer.finished:
                assert len(answer.tokens) == asked.tokens, f"{name}: cut short"
                self.done["answers compared"] += 1
                self.done["chunks from kvtier or the device"] += answer.cached // CHUNK
                del self._asked[name]

    def _weigh(self) -> None:
        """Assert that the records never take more than the tier's capacity."""
        more = self._harm.added()  # first: what goes meanwhile is not counted at all
        nbytes = self._disk.weigh() - more
        assert nbytes <= self._capacity, f"{nbytes} bytes of records, capacity {self._capacity}"

    def _look(self) -> None:
        """Let the engine come to rest, then look at everything."""
        assert self._engine
        self._harm.heal()
        self._finish()
        found = self._engine.call("tests.engine.inside:rest")
        assert found == IDLE, found
        metrics = self._engine.metrics()
        assert metrics.get("kvtier:off", 0) == 0, "kvtier has turned itself off"
        self._weigh()
        self.done["looks at an idle engine"] += 1
        self._measure()

    def _measure(self) -> None:
        """Assert that the engine does not grow, once it has warmed up."""
        assert self._engine
        pids = session(self._engine.process.pid)
        now = Size(sum(map(_rss, pids)), sum(map(_fds, pids)))
        self._sizes.append(now)
        self._longest = max(self._longest, self._sizes, key=len)
        warm = self._sizes[min(_WARM, len(self._sizes)) - 1]
        assert now.rss < warm.rss + _RSS_GROWTH, self._sizes
        assert now.fds < warm.fds + _FDS_GROWTH, self._sizes


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def _fds(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0
