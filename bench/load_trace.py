"""Where the time of a load from DRAM goes on the real engine, idle and beside a request that decodes.

128 MiB are copied a load. The share in which nothing is copied is taken from the trace of each load; the time to the
first token is the client's. With `--against TREE` a server of another source tree is asked the same in turn, and
its times to the first token are compared; it need not know the trace. Each of the two is started first once.
"""

import argparse
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles

from _engine import (
    dram,
    forget_device_cache,
    nvme,
    prompts,
    server_config,
    settle,
    sources,
    workspace,
)
from _report import machine, report

from kvtier.demo.client import complete
from kvtier.demo.server import Server

LENGTHS = (4096, 8192, 16384, 30720)
TRACED = 8192  # 128 MiB
TAIL = 16
ANSWER = 4
DECODED = 400  # tokens of the other request: more than a hit takes, with what is before it
KINDS = ("idle", "busy")
TARGET_IDLE = 0.3
TARGET_TTFT = 0.75
LINE = re.compile(r"load of \S+: job=\d+ nbytes=\d+ (.*)")
COPY = re.compile(r"copy of job=(\d+) chunks=\S+ landed=(\S+) started=(\S+) copied=")

Tiers = Sequence[Mapping[str, object]]
Times = dict[str, float]
"""Milliseconds after the hit at which each thing happened."""


@dataclass
class Found:
    """What was found of one kind."""

    ttft: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    loads: list[Times] = field(default_factory=list)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another source tree of kvtier")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--nvme", action="store_true", help="from NVMe, 64 MiB a hit")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    args = parser.parse_args()
    machine()
    trees = {"this": Path(__file__).parents[1]}
    if args.against:
        trees["against"] = args.against.resolve()
    found = {kind: Found() for kind in args.kinds}
    orders = [[*trees]] if len(trees) == 1 else [[*trees], [*trees][::-1]]
    for order in orders:  # who starts first has other memory, and the machine for itself
        with workspace() as folder, ExitStack() as stack:
            tiers = {name: [dram("2GiB")] for name in order}
            lengths = args.lengths
            if args.nvme:  # more than DRAM holds
                tiers = {name: [dram("256MiB"), nvme(folder / name, "2GiB")] for name in order}
                lengths = [4096] * 6
            servers = {n: start(folder, n, trees[n], tiers[n], stack) for n in order}
            rounds = -(-args.rounds // len(orders))
            sit(servers, lengths, rounds, found)
            for name, server in servers.items() if args.nvme else ():
                settle(server)
                if name == "this":
                    side_by_side(server)
                if (read := sources(server).nvme) < len(found) * rounds * sum(lengths):
                    raise RuntimeError(f"{name}: {read} tokens came from NVMe")
    for kind, each in found.items():
        tell(each.loads, kind)
        compare(each.ttft, kind)


def sit(
    servers: Mapping[str, Server], lengths: Sequence[int], rounds: int, found: Mapping[str, Found]
) -> None:
    """Ask these servers, which have just been started, for so many rounds of each kind."""
    asked = [prompts(1, n + TAIL, seed=i)[0] for i, n in enumerate(lengths)]
    first: dict[str, list[list[int]]] = {name: [] for name in servers}
    for name, server in servers.items():
        for prompt in asked:
            first[name].append(complete(server.port, prompt, ANSWER).tokens)
            settle(server)
    questions = list(zip(asked, first["this"], strict=True))
    for kind, each in found.items():
        measure(servers, questions, rounds, kind, each)


def start(folder: Path, name: str, tree: Path, tiers: Tiers, stack: ExitStack) -> Server:
    """Start a server with kvtier from `tree`, whose loads are traced."""
    longest = max(LENGTHS) + 128
    config = server_config(folder, tiers, load="always", blocks=290, max_tokens=longest)
    logs = folder / "logging.json"
    logs.write_text(json.dumps(logging_config()))
    env = {"PYTHONPATH": str(tree), "VLLM_LOGGING_CONFIG_PATH": str(logs)}
    server = Server(replace(config, env={**config.env, **env}), folder / f"{name}.log")
    stack.callback(server.close)
    server.wait_ready()
    return server


def logging_config() -> dict[str, object]:
    """What vLLM logs by default, and the trace of loads."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(name)s %(message)s"}},
        "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "plain"}},
        "loggers": {
            "vllm": {"handlers": ["out"], "level": "INFO", "propagate": False},
            "vllm.kvtier.loads": {"level": "DEBUG"},
        },
    }


def measure(
    servers: Mapping[str, Server],
    questions: Sequence[tuple[list[int], list[int]]],
    rounds: int,
    kind: str,
    found: Found,
) -> None:
    """Ask every server in turn."""
    traced = max(min(TRACED, len(prompt) - TAIL) for prompt, _ in questions)
    for nth in range(rounds + 1):
        for prompt, right in questions:
            n = len(prompt) - TAIL
            for name, server in list(servers.items())[:: 1 if nth % 2 else -1]:
                forget_device_cache(server)
                seen = len(traces(server))
                with decoding(server, on=kind == "busy"):
                    asked_at = time.monotonic()
                    answer = complete(server.port, prompt, ANSWER)
                # beside another request the sums are added in another order
                if answer.cached != n or (kind == "idle" and answer.tokens != right):
                    raise RuntimeError(f"{name}: {n} tokens: {answer} instead of {right}")
                if nth:  # the first of each kind is slow
                    found.ttft.setdefault((name, n), []).append(answer.ttft_s)
                    if name == "this" and n == traced:
                        loads = traces(server)[seen:]
                        found.loads += [around(t, asked_at, answer.ttft_s) for t in loads]


def compare(ttft: Mapping[tuple[str, int], list[float]], kind: str) -> None:
    """Report the times to the first token."""
    for (name, n), times in ttft.items():
        report("load_trace", f"TTFT, {kind}, {n} tokens, {name}", median(times), "s")
        fast = quantiles(times, n=4)[0]  # the least of what others do on the machine
        report("load_trace", f"TTFT, {kind}, {n} tokens, {name}, lower quartile", fast, "s")
    for n in {n for name, n in ttft if name == "against"}:
        pairs = zip(ttft["this", n], ttft["against", n], strict=True)
        ratio = median(mine / theirs for mine, theirs in pairs)
        report("load_trace", f"TTFT, {kind}, {n} tokens, ratio", ratio, "times", TARGET_TTFT)


def tell(loads: list[Times], kind: str) -> None:
    """Report where the time of the traced loads went."""
    order = [name for name in loads[0] if " " not in name and name != "worked"]
    for before, name in zip(["hit", *order], order, strict=False):
        took = median(load[name] - load.get(before, 0.0) for load in loads)
        report("load_trace", f"{kind}, {before} to {name}", took, "ms")
    whole = [load["scheduled"] for load in loads]
    for name in ("asked to hit", "scheduled to first token"):
        report("load_trace", f"{kind}, {name}", median(load[name] for load in loads), "ms")
    copying = [load["worked"] for load in loads]
    report("load_trace", f"{kind}, copying", median(copying), "ms")
    idle = median(1 - moving / all_ for moving, all_ in zip(copying, whole, strict=True))
    report("load_trace", f"{kind}, hit to scheduled", median(whole), "ms")
    report("load_trace", f"{kind}, share without a copy", idle, "of the time", TARGET_IDLE)


def around(load: Times, asked_at: float, ttft_s: float) -> Times:
    """Add what lies before the hit and behind the step that computes."""
    before = load["at"] - asked_at * 1e3
    rest = {name: ms for name, ms in load.items() if name != "at"}
    behind = ttft_s * 1e3 - before - load["scheduled"]
    return {**rest, "asked to hit": before, "scheduled to first token": behind}


def traces(server: Server) -> list[Times]:
    """What the server's log says of its loads so far."""
    found: list[Times] = []
    for match in LINE.finditer(server.log.read_text(errors="replace")):
        pairs = (each.split("=") for each in match[1].split())
        found.append({name: float(ms) for name, ms in pairs})
    return found


def side_by_side(server: Server) -> None:
    """Report for how long loads were copied while the last of their chunks was still read."""
    landed: dict[str, list[float]] = {}
    started: dict[str, list[float]] = {}
    for job, at, since in COPY.findall(server.log.read_text(errors="replace")):
        landed.setdefault(job, []).append(float(at))
        started.setdefault(job, []).append(float(since))
    report("load_trace", "loads copied as their chunks landed", len(landed), "loads")
    if landed:
        ahead = median(max(landed[job]) - min(started[job]) for job in landed)
        report("load_trace", "their first copy, before their last chunk", ahead, "ms")


@contextmanager
def decoding(server: Server, *, on: bool) -> Iterator[None]:
    """Let another request decode meanwhile, from before the first to behind the last."""
    if not on:
        yield
        return
    prompt = prompts(1, 64, seed=time.monotonic_ns())[0]
    thread = threading.Thread(target=complete, args=(server.port, prompt, DECODED))
    thread.start()
    time.sleep(0.3)
    yield
    thread.join()


if __name__ == "__main__":
    main()
