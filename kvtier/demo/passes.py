"""The four passes: the same conversations on vLLM alone, with DRAM, with NVMe, and after a restart."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvtier.demo.client import complete, metrics, tokenize
from kvtier.demo.model import text
from kvtier.demo.results import PassResult, Turn
from kvtier.demo.server import Server, ServerConfig, ServerError, serving
from kvtier.demo.watch import Watch, parse, sources
from kvtier.demo.workload import Script, Workload

SETTLE_S = 60.0

Progress = Callable[[str, str, float], None]
"""Called with the pass, what it does, and how much of it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Everything that the passes share."""

    model: Path
    workload: Workload
    token_nbytes: int  # of KV
    folder: Path  # for logs and for the NVMe tier; the caller removes it
    progress: Progress

    def run(self) -> Iterator[PassResult]:
        """Run the passes one after the other, each on an engine of its own.

        Raises:
            ServerError: an engine does not start, or fails.
        """
        first = _Reference()
        yield self._pass("vllm", None, first)
        yield self._pass("dram", {"tiers": [self._dram(1.5)]}, first)
        nvme = {"tiers": [self._dram(0.4), self._nvme()]}
        yield self._pass("nvme", nvme, first)
        yield self._pass("restart", nvme, first, last_turn_only=True)

    def _pass(
        self,
        name: str,
        kvtier: Mapping[str, object] | None,
        first: "_Reference",
        *,
        last_turn_only: bool = False,
    ) -> PassResult:
        self.progress(name, "starts the engine", 0.0)
        config = ServerConfig(
            model=self.model,
            blocks=self.workload.blocks,
            max_tokens=self.workload.longest,
            kvtier=kvtier,
        )
        with serving(config, self.folder / f"{name}.log") as server, explained(server):
            if first.script is None:
                first.script = Script(self.workload, tokenize(server.port, text()))
            complete(server.port, [1], 1)  # the first request pays for what is lazy
            warm = sources(parse(metrics(server.port)))
            with Watch(server.port) as watch:
                started = time.monotonic()
                turns = list(self._converse(name, server.port, first, last_turn_only))
                seconds = time.monotonic() - started
            settle(self.folder / "nvme")
            counted = sources(parse(metrics(server.port)))
        return PassResult(
            name=name,
            turns=turns,
            sources=type(counted)(*(b - a for a, b in zip(warm, counted, strict=True))),
            occupancy=watch.occupancy,
            capacity=watch.capacity,
            seconds=seconds,
            identical=first.agrees(turns),
        )

    def _converse(
        self, name: str, port: int, first: "_Reference", last_turn_only: bool
    ) -> Iterator[Turn]:
        assert first.script is not None
        order = [
            (session, turn)
            for session, turn in first.script.order()
            if not last_turn_only or turn == self.workload.turns - 1
        ]
        for done, (session, turn) in enumerate(order):
            doing = f"turn {turn + 1}/{self.workload.turns}, session {session + 1}"
            self.progress(name, doing, done / len(order))
            prompt = first.script.prompt(session, turn, first.answers(session))
            answer = complete(port, prompt, self.workload.answer)
            asked = Turn(session, turn, len(prompt), answer.tokens, answer.ttft_s)
            first.note(asked)
            yield asked
        self.progress(name, "done", 1.0)

    def _dram(self, share: float) -> dict[str, object]:
        return {"name": "dram", "kind": "dram", "capacity": self._nbytes(share)}

    def _nvme(self) -> dict[str, object]:
        path = self.folder / "nvme"
        path.mkdir(exist_ok=True)
        return {
            "name": "nvme",
            "kind": "file",
            "path": str(path),
            "capacity": self._nbytes(4),
            "write": "through",
        }

    def _nbytes(self, share: float) -> int:
        """A share of the KV of all conversations, in whole MiB."""
        nbytes = self.workload.sessions * self.workload.longest * self.token_nbytes * share
        return max(int(nbytes) >> 20, 1) << 20


class _Reference:
    """The first pass's script and answers: what every later pass asks, and is compared with."""

    def __init__(self) -> None:
        self.script: Script | None = None
        self._answers: dict[tuple[int, int], list[int]] = {}

    def note(self, turn: Turn) -> None:
        """Keep the answer of the first pass."""
        self._answers.setdefault((turn.session, turn.turn), turn.tokens)

    def answers(self, session: int) -> list[list[int]]:
        """The session's answers so far, by turn."""
        return [tokens for (whose, _), tokens in sorted(self._answers.items()) if whose == session]

    def agrees(self, turns: Sequence[Turn]) -> bool:
        """Whether every token is the same."""
        return all(self._answers[turn.session, turn.turn] == turn.tokens for turn in turns)


@contextmanager
def explained(server: Server) -> Iterator[None]:
    """Say what the server logged where it fails in the middle."""
    try:
        yield
    except OSError as error:
        raise ServerError(f"the engine stopped answering: {error}\n{server.log_tail()}") from error


def settle(path: Path) -> None:
    """Wait until no more records appear in the NVMe tier, at most SETTLE_S."""
    before, deadline = -1, time.monotonic() + SETTLE_S
    while path.is_dir() and time.monotonic() < deadline:
        now = sum(1 for _ in path.rglob("*.kvt"))
        if now == before:
            return
        before = now
        time.sleep(1.0)
