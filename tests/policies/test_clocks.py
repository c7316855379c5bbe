"""Every eviction policy on clocks that stand still, for several requests at one time, and that leap by hours."""

import random
from dataclasses import replace

import numpy as np
import pytest

from kvtier import registry
from kvtier.config import Plugin
from kvtier.policies.conversations.returns import _EDGES, ReturnTimes, Watched
from kvtier.sim.blocks import one_tier, replay_blocks
from tests.sim.rows import trace


@pytest.mark.parametrize("name", registry.names("eviction"))
@pytest.mark.parametrize("seed", range(3))
def test_a_policy_on_any_clock(name: str, seed: int) -> None:
    rng = random.Random(seed)
    asked = [
        [chat * 100 + i for i in range(rng.randint(2, 6))] for chat in rng.choices(range(20), k=400)
    ]
    gaps = rng.choices([0.0, 0.0, 1.0, 60.0, 2 * _EDGES[-1]], k=len(asked))
    made = replace(trace(asked), at_s=np.cumsum(gaps))
    done = replay_blocks(made, one_tier(Plugin(kind=name)), slots=40, block_nbytes=1)
    assert done.hits.sum() > 0


def test_two_uses_at_one_time_grow_old_once() -> None:
    times, twice = ReturnTimes(1), Watched()
    for _ in range(2):
        times.used(twice, 0, 1.0)
    for i in range(40):
        times.used(Watched(), 0, 2.0 + i)
    times.fit(2 * _EDGES[-1])
    assert twice.bin == len(_EDGES) - 1
