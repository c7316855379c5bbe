"""The real brain before a drive of so many bytes a second, in virtual time: who waits, for how long, and for whom.

The engine asks for each waiting prompt once per step, in the queue's order, as vLLM's scheduler does. The reads go
through what the product has on their way: the worker's `Window` and the I/O process's `OpQueue`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvtier.brain import LoadPlan, TieredCache, TierSpec
from kvtier.brain.cost import Costs
from kvtier.io_process.opqueue import Job, OpQueue
from kvtier.io_process.window import Window
from kvtier.policies.eviction.lru import LruPolicy
from kvtier.types import (
    PAGE,
    BlockKey,
    GroupSpec,
    OpKind,
    OpResult,
    OpStatus,
    ScanBatch,
    TierOp,
    WriteMode,
)
from tests.brain.fake_ranks import Clock, chain

STEP_S = 0.01
LINK = 25e9  # bytes per second from DRAM to the device
THREADS = 8


@dataclass
class Prompt:
    """A request that waits for its hit."""

    name: str
    keys: list[BlockKey]
    arrived: float
    hit: int | None = None  # chunks that it was given; None: it still waits
    wait_s: float = 0.0
    copied_s: float | None = None  # until all of it was on the device
    late: int = 0  # chunks that were not


class Drive:
    """Serves one read after the other; up to eight are in its hands, and `stalls` while it is told to."""

    def __init__(self, clock: Clock, nbytes_per_s: float, record: int) -> None:
        self.nbytes_per_s = nbytes_per_s
        self.stalled = False
        self._clock = clock
        self._record = record
        self._window = Window(THREADS, clock)
        self._queue = OpQueue(THREADS, [None], 1.0, clock)
        self._running: list[Job] = []
        self._left_s = 0.0  # of the read in hand
        self._answers: list[OpResult] = []

    @property
    def moves(self) -> bool:
        """Whether it reads now."""
        return bool(self._running) and not self.stalled

    def submit(self, ops: Sequence[TierOp]) -> None:
        """Take the brain's operations."""
        for op in ops:
            if op.kind is OpKind.READ:
                self._window.offer(op)
            elif op.kind is OpKind.CANCEL:
                if self._window.cancel(op.target) or self._queue.cancel(op.target):
                    self._window.ended(op.target)
                    self._answer(op.target, OpStatus.CANCELLED)
                self._answer(op.op)
            elif op.kind is OpKind.HASTEN:
                if not self._window.hasten(op.target, op.priority):
                    self._queue.hasten(op.target, op.priority)
            else:
                self._answer(op.op)
        for op in self._window.take():
            self._queue.put(Job(op, 0))
        self._take()

    def run(self, seconds: float) -> list[OpResult]:
        """Read for so long; return what the engine hears at the end of the step."""
        until = self._clock.now + seconds
        while self.moves and self._clock.now + self._left_s <= until:
            self._clock.now += self._left_s
            job = self._running.pop(0)
            self._queue.done(job)
            self._window.ended(job.op.op)
            self._answer(job.op.op)
            self._left_s = self._record / self.nbytes_per_s
            self._take()
        if self.moves:
            self._left_s -= until - self._clock.now
        self._clock.now = until
        for job in self._queue.expire():
            self._window.ended(job.op.op)
            self._answer(job.op.op, OpStatus.DEADLINE)
        self._window.adjust()
        for number in self._window.late():
            self._answer(number, OpStatus.DEADLINE)
        answers, self._answers = self._answers, []
        return answers

    def _take(self) -> None:
        while len(self._running) < THREADS - 1 and len(self._queue):
            if not self._running:
                self._left_s = self._record / self.nbytes_per_s
            job = self._queue.take()
            assert job
            self._running.append(job)

    def _answer(self, op: int, status: OpStatus = OpStatus.OK) -> None:
        self._answers.append(
            OpResult(0, op, status, self._record, self._record / self.nbytes_per_s)
        )


@dataclass
class Load:
    """Copies under way, and those that wait for a read."""

    plan: LoadPlan
    prompt: Prompt
    keys: list[BlockKey]
    coming: dict[int, int]  # the READ of each such chunk, and its position
    until: float
    copied_at: float = 0.0

    def over(self, now: float) -> bool:
        """Whether all is copied, or what is not is waited for no more."""
        return self.copied_at <= now and (not self.coming or now >= self.until)


@dataclass
class Decoder:
    """A running request that stores a chunk every so often, and how many of its chunks were taken."""

    keys: list[BlockKey]
    every_s: float
    next_s: float
    offered: int = 0
    taken: int = 0
    plans: list[int] = field(default_factory=list)


class Rig:
    """One engine with so many slots of DRAM, above a drive that holds every prompt's prefix whole."""

    def __init__(
        self,
        *,
        slots: int,
        nbytes_per_s: float,
        chunk_tokens: int,
        chunk_nbytes: int,
        prefixes: Sequence[list[BlockKey]],
        prefill_rate: float | None = None,
        read_share: float = 0.5,
        overlap: bool = False,
    ) -> None:
        self.clock = Clock()
        self.slots = slots
        self.chunk_tokens = chunk_tokens
        self.chunk_nbytes = chunk_nbytes
        self.prompts: list[Prompt] = []
        self.stuck_s = 0.0  # somebody waits and nothing moves
        self.most_pinned = 0
        self._steps = 0
        self.decoder: Decoder | None = None
        self._loads: list[Load] = []
        self._link_free = 0.0
        costs = Costs(self.clock)
        costs.load.start(1 << 30, (1 << 30) / LINK)
        self.cache = TieredCache(
            groups=[GroupSpec(0, chunk_tokens, None, chunk_nbytes)],
            ranks=1,
            tier0=LruPolicy,
            lower=[
                TierSpec(
                    name="nvme",
                    capacity=1 << 50,
                    write=WriteMode.IDLE,
                    deadline_s=2.0,
                    persistent=True,
                    eviction=LruPolicy,
                )
            ],
            clock=self.clock,
            read_share=read_share,
            overlap=overlap,
            costs=costs,
        )
        self.drive = Drive(self.clock, nbytes_per_s, chunk_nbytes + PAGE)
        self._open(prefixes)
        if prefill_rate is not None:
            self.cache.prefilled(int(prefill_rate), 1.0)

    def _open(self, prefixes: Sequence[list[BlockKey]]) -> None:
        self.cache.open(self.slots, "{}")
        ops = self.cache.drain()
        self.cache.complete([OpResult(0, op.op, OpStatus.OK) for op in ops])
        keys: list[bytes] = list(dict.fromkeys(key for prefix in prefixes for key in prefix))
        sizes, times = [self.chunk_nbytes + PAGE] * len(keys), [0.0] * len(keys)
        self.cache.scanned(ScanBatch(0, 1, ops[0].op, keys, sizes, times, True))
        while self.cache.stats().tiers[1].chunks < len(keys):
            self.drive.submit(self.cache.drain())
            self.cache.complete(self.drive.run(STEP_S))

    @property
    def learned(self) -> float:
        """Bytes per second of the drive, as the brain has learned them; 0 before it has."""
        per_byte = self.cache._state.lowers[0].cost._per_byte.steady()
        return 1 / per_byte if per_byte else 0.0

    def arrive(self, name: str, keys: list[BlockKey]) -> Prompt:
        """Let a prompt queue up."""
        self.cache.arrive(name, [keys])
        prompt = Prompt(name, keys, self.clock.now)
        self.prompts.append(prompt)
        return prompt

    def decode(self, every_s: float) -> Decoder:
        """Let a request decode: it stores a chunk from time to time."""
        keys = chain("decodes", 1000)
        self.cache.arrive("decodes", [keys])
        self.decoder = Decoder(keys, every_s, self.clock.now)
        return self.decoder

    def run(self, until: Callable[[], bool] | None = None, *, limit_s: float = 120.0) -> None:
        """Step until every prompt has its answer."""
        over = until or (lambda: all(prompt.hit is not None for prompt in self.prompts))
        end = self.clock.now + limit_s
        while not over() and self.clock.now < end:
            self.step()

    def step(self) -> None:
        """One step of the engine: schedule, order, compute, hear."""
        for prompt in self.prompts:
            if prompt.hit is None:
                self._ask(prompt)
        self._store()
        self.drive.submit(self.cache.drain())
        waiting = any(prompt.hit is None for prompt in self.prompts)
        if waiting and not self._loads and not self.drive.moves:
            self.stuck_s += STEP_S
        self._steps += 1
        if self._steps % (1 + self.slots // 64) == 0:  # a pass over everything
            self.cache.check()
        self.most_pinned = max(self.most_pinned, self.cache.stats().pinned)
        answers = self.drive.run(STEP_S)
        for load in self._loads:
            self._copy(load, answers)
        self.cache.complete(answers)
        for load in [load for load in self._loads if load.over(self.clock.now)]:
            self._loads.remove(load)
            load.prompt.copied_s = self.clock.now - load.prompt.arrived
            load.prompt.late = len(load.coming)
            self.cache.finish(load.plan.plan_id, [load.keys[i] for i in load.coming.values()])
            self.cache.depart(load.prompt.name)

    def _ask(self, prompt: Prompt) -> None:
        cache, name = self.cache, prompt.name
        if not cache.ready(name):
            return
        for _ in range(2):
            n = next((i for i, key in enumerate(prompt.keys) if not cache.lookup(name, key)), None)
            keys = prompt.keys[:n]
            plan = cache.plan_read(name, keys) if keys else None
            if plan is None:
                self._load(prompt, keys)
                return
            if plan.reading:
                return
        raise AssertionError("a settled request was promised what cannot come")

    def _load(self, prompt: Prompt, keys: list[BlockKey]) -> None:
        prompt.hit = len(keys)
        prompt.wait_s = self.clock.now - prompt.arrived
        plan = self.cache.plan_load(prompt.name, keys)
        coming = {op: i for i, op in plan.reads.items()}
        load = Load(plan, prompt, keys, coming, self.clock.now + plan.patience_s)
        self._loads.append(load)
        self._give(load, len(keys) - len(coming))

    def _copy(self, load: Load, answers: Sequence[OpResult]) -> None:
        """Let a rank copy what landed: it hears of that between two steps."""
        landed = [each.op for each in answers if each.op in load.coming]
        for op in landed:
            del load.coming[op]
        self._give(load, len(landed))

    def _give(self, load: Load, chunks: int) -> None:
        if chunks:
            nbytes = chunks * self.chunk_nbytes
            self._link_free = max(self._link_free, self.clock.now) + nbytes / LINK
            load.copied_at = self._link_free

    def _store(self) -> None:
        if (decoder := self.decoder) is None:
            return
        for done in decoder.plans:
            self.cache.finish(done)
        decoder.plans.clear()
        while self.clock.now >= decoder.next_s:
            decoder.next_s += decoder.every_s
            key = decoder.keys[decoder.taken]
            decoder.offered += 1
            plan = self.cache.plan_store("decodes", [key])
            if plan.keys:
                decoder.taken += 1
                decoder.plans.append(plan.plan_id)


def served(rig: Rig) -> float:
    """Tokens that the prompts were given, of those that they could have."""
    return sum(p.hit or 0 for p in rig.prompts) / sum(len(p.keys) for p in rig.prompts)


def long_prefix(
    nbytes_per_s: float,
    chunk_tokens: int,
    *,
    others: Sequence[list[BlockKey]] = (),
    prefill_rate: float | None = 12_000,  # 10.9 s for all of it
) -> Rig:
    """Ask for 128k tokens of an 8B model (128 KiB per token) that lie on the drive, with 64 GiB of DRAM."""
    nbytes = chunk_tokens * (128 << 10)
    keys = chain("long", (128 << 10) // chunk_tokens)
    rig = Rig(
        slots=(64 << 30) // nbytes,
        nbytes_per_s=nbytes_per_s,
        chunk_tokens=chunk_tokens,
        chunk_nbytes=nbytes,
        prefixes=[keys, *others],
        prefill_rate=prefill_rate,
    )
    rig.arrive("r", keys)
    return rig


def crowd(n: int, share: float, *, others: Sequence[list[BlockKey]] = ()) -> Rig:
    """Let `n` requests come together; each has a prefix of its own, as large as a share of 2 GiB of DRAM."""
    slots = 256
    prefixes = [chain(f"p{i}", round(share * slots)) for i in range(n)]
    rig = Rig(
        slots=slots,
        nbytes_per_s=7e9,
        chunk_tokens=64,
        chunk_nbytes=8 << 20,
        prefixes=[*prefixes, *others],
    )
    for i, keys in enumerate(prefixes):
        rig.arrive(f"r{i}", keys)
    return rig
