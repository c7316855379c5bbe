"""What the engine tests ask, and what vLLM alone answers: asked once per model, with room for everything."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.engine.harness import Engine
from tests.engine.models import prompts
from tests.patience import HANG_S

TOKENS = 24  # of an answer
TOKENS_INTERPRETED = 8


@dataclass
class Reference:
    """vLLM's own answers to prompts."""

    answers: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def learn(self, alone: Engine, asked: Sequence[Sequence[int]]) -> None:
        """Ask vLLM alone."""
        for prompt, tokens in zip(asked, alone.generate(asked, TOKENS), strict=True):
            self.answers[tuple(prompt)] = tokens

    def of(self, asked: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the known answers."""
        return [self.answers[tuple(prompt)] for prompt in asked]


def turns(sessions: int, count: int, seed: int, length: int = 600) -> list[list[list[int]]]:
    """Make chats: per turn, the prompt of each session, which extends the one before it."""
    asked = prompts(sessions, length, seed=seed)
    chats = [asked]
    for turn in range(1, count):
        more = prompts(sessions, 300, seed=seed + 100 * turn)
        asked = [a + b for a, b in zip(asked, more, strict=True)]
        chats.append(asked)
    return chats


def dram(capacity: str = "256MiB") -> dict[str, object]:
    """One DRAM tier."""
    return {"tiers": [{"name": "dram", "kind": "dram", "capacity": capacity}]}


def nvme(
    path: Path, capacity: str = "1GiB", dram_capacity: str = "16MiB", **more: object
) -> dict[str, object]:
    """Little DRAM and a file tier below it."""
    return {
        "load": "always",  # these models compute faster than a busy disk reads
        "chunk_tokens": 256,  # two blocks
        "tiers": [
            {"name": "dram", "kind": "dram", "capacity": dram_capacity},
            {
                "name": "nvme",
                "kind": "file",
                "path": str(path),
                "capacity": capacity,
                "deadline": f"{HANG_S:.0f}s",
                **more,
            },
        ],
    }
