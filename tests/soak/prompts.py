"""What the soak asks: families of prompts that share prefixes, of 0 to 10 chunks."""

import random

from tests.engine.models import prompts
from tests.engine.rig import CHUNK

FAMILIES = 8


def _pool() -> list[list[int]]:
    rng = random.Random(97)
    made = []
    for family in range(FAMILIES):
        stem = prompts(1, 10 * CHUNK + 60, seed=500 + family)[0]
        for chunks in (rng.randrange(11) for _ in range(4)):
            cut = stem[: chunks * CHUNK + rng.randrange(1, 60)]
            made.append(cut + prompts(1, rng.randrange(1, CHUNK), seed=rng.randrange(1 << 30))[0])
        made.append(stem)
    return made


POOL = _pool()
