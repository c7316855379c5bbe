"""What a step costs EngineCore and a worker's main thread: it should be what changed in the step.

vLLM's real scheduler runs with kvtier, with vLLM's own OffloadingConnector and without a connector, side by side in
one process. Nothing is computed and nothing is copied. Times are processor times of the thread.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from statistics import median

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from _null_device import NullRank
from _report import machine, report
from _scheduler import BLOCK, Engine, Names

from kvtier.types import BlockKey

BENCH = "steps"
KINDS = ("none", "vllm", "kvtier")
CHUNK = 256
GROUP = (0).to_bytes(4, "big")
ROUNDS, STEPS = 12, 32
NVME = {"name": "nvme", "kind": "file", "path": "/nowhere", "capacity": "64TiB"}
DECODE = {(16, 131072): 0.06, (64, 32768): 0.25, (256, 8192): 0.5}
"""Requests and tokens of each, and the milliseconds that kvtier may add to a step."""
MILLION = 1_000_000


def main() -> None:
    """Measure and report what is asked for, by default everything."""
    cases = (decode, growth, burst, arrival, below, reset, scan, stores, load)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *(case.__name__ for case in cases)])
    wanted = parser.parse_args().cases
    machine()
    for case in cases:
        if case.__name__ in wanted or not wanted:
            case()


def decode() -> None:
    """Steps in which every request gets one token."""
    for (requests, context), target in DECODE.items():
        took = decode_steps({kind: decoding(kind, requests, context) for kind in KINDS})
        what = f"decode, {requests} x {context // 1024}k"
        for kind in KINDS:
            report(BENCH, f"{what}, {kind}", took[kind], "ms")
        added = {kind: took[kind] - took["none"] for kind in KINDS}
        report(BENCH, f"{what}, kvtier adds", added["kvtier"], "ms", target)
        report(BENCH, f"{what}, of what vLLM's own adds", ratio(added), "times", 1.0)


def growth() -> None:
    """What a decode step adds if contexts are four times as long, and if the cache holds a hundred times as much."""
    added = []
    for context, resident in ((8192, 10_000), (32768, 10_000), (8192, MILLION)):
        kinds = ("none", "kvtier")
        engines = {kind: decoding(kind, 64, context, resident) for kind in kinds}
        took = decode_steps(engines)
        added.append(took["kvtier"] - took["none"])
    report(BENCH, "decode, 64 x 8k, kvtier adds", added[0], "ms")
    report(BENCH, "the same with contexts of 32k", added[1] / added[0], "times", 1.2)
    report(BENCH, "the same with 1M chunks resident", added[2] / added[0], "times", 1.2)


def decoding(kind: str, requests: int, context: int, resident: int = 0) -> Engine:
    """Make an engine whose requests all decode, and whose every store takes a victim's slot."""
    slots = resident or requests * context // CHUNK // 2
    blocks = requests * (context + CHUNK + 2 * ROUNDS * STEPS) // BLOCK
    engine = Engine(kind, blocks=blocks, slots=slots)
    engine.step()
    if resident and kind == "kvtier":
        fill(engine, resident)
    for i in range(requests):
        engine.add(f"r{i}", context + i * CHUNK // requests)
    engine.settle()
    return engine


def decode_steps(engines: dict[str, Engine]) -> dict[str, float]:
    """Run engines in turns; return the milliseconds of a median step."""
    gc.freeze()  # as EngineCore does when it has started
    times: dict[str, list[float]] = {kind: [] for kind in engines}
    for _ in range(ROUNDS):
        for kind, engine in engines.items():
            times[kind] += engine.run(STEPS)
    return {kind: 1e3 * median(each) for kind, each in times.items()}


def burst() -> None:
    """1,000 requests at once over one prefix of 100k tokens that is not on the device any more, in the connector."""
    for kind, tier in (("vllm", "dram"), ("kvtier", "dram"), ("kvtier", "nvme")):
        steps = burst_steps(kind, tier)
        inside, whole = max(steps)
        what = f"1,000 requests over one prefix in {tier}, {kind}"
        target = 10.0 if kind == "kvtier" else None
        report(BENCH, f"{what}: longest step in the connector", 1e3 * inside, "ms", target)
        report(BENCH, f"{what}: of all that this step cost", inside / whole, "share")
        total = sum(whole for _, whole in steps)
        report(BENCH, f"{what}: EngineCore until all are running", total, "s")


def burst_steps(kind: str, tier: str) -> list[tuple[float, float]]:
    """Return what each step costs in the connector, and in all, until nobody waits."""
    tokens, requests = 100_096, 1000
    found = keys("prefix", tokens) if tier == "nvme" else ()
    engine = Engine(
        kind,
        blocks=(tokens + requests * 4 * CHUNK) // BLOCK,
        load_steps=8,
        found=found,
        tiers=[NVME] if found else [],
    )
    engine.settle()
    if not found:
        engine.add("first", tokens + BLOCK, prefix="prefix", shared=tokens)
        engine.settle()
        engine.abort(["first"])
        engine.settle()
        engine.scheduler.reset_prefix_cache()
    for i in range(requests):
        engine.add(f"b{i}", tokens + 2 * BLOCK, prefix="prefix", shared=tokens)
    gc.freeze()  # as EngineCore does when it has started
    spent, steps = inside_connector(engine), []
    for _ in range(3000):
        whole = engine.step()
        steps.append((spent(), whole))
        if engine.scheduler.get_request_counts()[1] == 0:
            return steps
    raise RuntimeError("the burst does not come through")


def arrival() -> None:
    """One request of 128k tokens, by kvtier's hook alone."""
    for chunk in (64, CHUNK):
        engine = Engine("kvtier", blocks=100, chunk_tokens=chunk)
        engine.settle()
        hook, times, tokens = engine.connector.on_new_request, [], 131072
        engine.scheduler.connector.on_new_request = lambda request: None
        for i in range(20):
            request = engine.add(f"r{i}", tokens)
            times.append(timed(partial(hook, request)))
        per_1000 = 1e6 * median(times) / (tokens / chunk)
        report(BENCH, f"arrival of 128k tokens, chunks of {chunk}", per_1000, "ms per 1,000", 0.2)


def below() -> None:
    """One request whose 1,024 chunks of 64 tokens are read from below: EngineCore from the lookup to the load."""
    tokens, chunk = 65536, 64
    found = [key for i in range(8) for key in keys(f"p{i}", tokens, chunk)]
    engine = Engine(
        "kvtier",
        blocks=8 * tokens // BLOCK + 100,
        chunk_tokens=chunk,
        tiers=[NVME],
        found=found,
        slots=1 << 15,
    )
    engine.settle()
    engine.run(20)  # what was listed is taken in
    costs = []
    for i in range(8):
        engine.add(f"r{i}", tokens + BLOCK, prefix=f"p{i}", shared=tokens)
        spent, steps = inside_connector(engine), 0.0
        for _ in range(20):
            engine.step()
            steps += spent()
            if not engine.scheduler.get_request_counts()[1]:
                break
        else:
            raise RuntimeError("the reads do not come")
        costs.append(1e6 * steps / (tokens // chunk))
        engine.abort([f"r{i}"])
    if engine.connector.scheduling.brain.stats().loads != len(found):
        raise RuntimeError("not all was read")
    report(BENCH, "a chunk read from below, until it is loaded", median(costs), "us", 8.0)


def reset() -> None:
    """A reset with a million chunks resident, and the steps after it."""
    engine = Engine("kvtier", blocks=1000, slots=MILLION)
    engine.settle()
    fill(engine, MILLION)
    engine.step()
    call = timed(lambda: engine.scheduler.reset_prefix_cache(reset_connector=True))
    report(BENCH, "reset of 1M chunks, the call", 1e3 * call, "ms", 20.0)
    report(BENCH, "reset of 1M chunks, longest step after", 1e3 * max(engine.run(50)), "ms", 20.0)


def scan() -> None:
    """The list of a million records at a start, step by step."""
    found = [sha256(b"%d" % i).digest() + GROUP for i in range(MILLION)]
    engine = Engine("kvtier", blocks=1000, tiers=[NVME], found=found)
    brain, steps = engine.connector.scheduling.brain, []
    while brain.stats().tiers[1].chunks < MILLION:
        steps.append(engine.step())
    report(BENCH, "scan of 1M records, longest step", 1e3 * max(steps), "ms")
    report(BENCH, "scan of 1M records, median step", 1e3 * median(steps), "ms")


def stores() -> None:
    """A worker's step with a store of one chunk for each of 256 requests."""
    rank = NullRank(blocks=1 << 14, page_nbytes=64 << 10, blocks_per_chunk=16, slots=512)
    jobs = [(i, *rank.specs(range(i, i + 1), 32 * i)) for i in range(256)]
    submissions, polls, wholes = [], [], []
    for _ in range(8):
        started = time.thread_time()
        for job, slots, device in jobs:
            rank.worker.submit_store(job, device, slots)
        rank.worker.launched()
        submissions.append(time.thread_time() - started)
        ended = 0
        while ended < len(jobs):
            polled = time.thread_time()
            ended += len(rank.worker.get_finished())
            polls.append(time.thread_time() - polled)
        wholes.append(time.thread_time() - started)
    rank.close()
    report(BENCH, "256 stores of a chunk, submission", 1e3 * median(submissions), "ms", 6.0)
    report(BENCH, "256 stores of a chunk, until all are collected", 1e3 * median(wholes), "ms")
    report(BENCH, "256 stores of a chunk, longest poll", 1e3 * max(polls), "ms")


def load() -> None:
    """A load of 16 GiB in 8,192 chunks of 2 MiB: no call of the worker should be long."""
    for page_kib, per_chunk in ((64, 1), (4, 16)):
        chunks = 8192
        rank = NullRank(
            blocks=2 * chunks * per_chunk,
            page_nbytes=page_kib << 10,
            blocks_per_chunk=per_chunk,
            slots=chunks,
        )
        slots, device = rank.specs(range(chunks), 0)
        worker, calls = rank.worker, []
        submit = partial(worker.submit_load, 1, slots, device)
        calls += [timed(submit), timed(worker.launched)]
        ended = False
        while not ended:
            started = time.thread_time()
            ended = bool(worker.get_finished())
            calls.append(time.thread_time() - started)
        rank.close()
        what = f"load of 16 GiB, pages of {page_kib} KiB"
        report(BENCH, f"{what}, longest call", 1e3 * max(calls), "ms", 8.0)
        report(BENCH, f"{what}, in all", 1e3 * sum(calls), "ms")


def fill(engine: Engine, chunks: int, prefix: int = 500) -> None:
    """Store chunks of requests that are gone."""
    brain = engine.connector.scheduling.brain
    for i in range(0, chunks, prefix):
        found = [BlockKey(b"%032d" % (i + j) + GROUP) for j in range(prefix)]
        brain.arrive("filler", [found])
        brain.finish(brain.plan_store("filler", found).plan_id)
        brain.depart("filler")
        brain.events()


def keys(name: str, tokens: int, chunk: int = CHUNK) -> list[bytes]:
    """Name the chunks of a prefix as vLLM does: by the hash of the last block."""
    names = Names(name).hashes(0, tokens // BLOCK)
    return [last + GROUP for last in names[chunk // BLOCK - 1 :: chunk // BLOCK]]


def inside_connector(engine: Engine) -> Callable[[], float]:
    """Time the hooks of the connector from now on; the answer takes what was spent since it was last asked."""
    spent = [0.0]

    def watch(hook: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            started = time.thread_time()
            out = hook(*args, **kwargs)
            if isinstance(out, Iterator):
                out = list(out)
            spent[0] += time.thread_time() - started
            return out

        return run

    connector = engine.connector
    for name in (
        "get_num_new_matched_tokens",
        "update_state_after_alloc",
        "get_external_cache_hit_sources",
        "build_connector_meta",
        "update_connector_output",
        "get_kv_connector_stats",
        "take_events",
    ):
        setattr(connector, name, watch(getattr(type(connector), name).__get__(connector)))

    def take() -> float:
        taken, spent[0] = spent[0], 0.0
        return taken

    return take


def timed(call: Callable[[], object]) -> float:
    """Seconds of this thread's processor time."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


def ratio(added: dict[str, float]) -> float:
    """Return kvtier's share of what vLLM's own connector adds."""
    return added["kvtier"] / added["vllm"]


if __name__ == "__main__":
    main()
