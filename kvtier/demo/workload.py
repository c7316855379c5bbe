"""The conversations: several people chat in turn, so that each is forgotten by the engine before the next word."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.errors import ConfigError

BLOCK_TOKENS = 128  # vLLM's default on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How many sessions, how many turns, and how long in tokens."""

    sessions: int = 6
    turns: int = 4
    system: int = 256  # the beginning that all sessions share
    question: int = 500  # what the person says in each turn
    answer: int = 32

    @property
    def longest(self) -> int:
        """Tokens of a session at its end."""
        return self.system + self.turns * (self.question + self.answer)

    @property
    def blocks(self) -> int:
        """Blocks of the engine's cache: one session at its longest fits, two never do."""
        return -(-self.longest // BLOCK_TOKENS) + 4

    def fit(self, positions: int) -> "Workload":
        """Shorten the questions to what a model can read.

        Raises:
            ConfigError: nothing sensible is left.
        """
        room = (positions - self.system) // self.turns - self.answer
        if room < BLOCK_TOKENS:
            raise ConfigError(
                f"the model reads {positions} tokens; {self.turns} turns need at least "
                f"{self.system + self.turns * (self.answer + BLOCK_TOKENS)}"
            )
        return Workload(
            sessions=self.sessions,
            turns=self.turns,
            system=self.system,
            question=min(self.question, room),
            answer=self.answer,
        )


QUICK = Workload(sessions=4, turns=3, question=450, answer=24)


class Script:
    """What everybody says, cut from one long text; the answers come from the engine."""

    def __init__(self, workload: Workload, text: Sequence[int]) -> None:
        needed = workload.system + workload.sessions * workload.turns * workload.question
        if needed > len(text):
            raise ConfigError(f"the demo's text has {len(text)} tokens, {needed} are needed")
        self._workload = workload
        self._system = list(text[: workload.system])
        self._rest = list(text[workload.system :])

    def order(self) -> list[tuple[int, int]]:
        """Session and turn of each request, in the order in which they are asked."""
        work = self._workload
        return [(session, turn) for turn in range(work.turns) for session in range(work.sessions)]

    def prompt(self, session: int, turn: int, answers: Sequence[Sequence[int]]) -> list[int]:
        """The whole conversation up to and with question `turn`, after the session's earlier `answers`."""
        prompt = list(self._system)
        for earlier in range(turn + 1):
            at = (session * self._workload.turns + earlier) * self._workload.question
            prompt += self._rest[at : at + self._workload.question]
            if earlier < turn:
                prompt += answers[earlier]
        return prompt
