"""A small committed trace: 600 turns of 45 chats. Popular ones return often, each longer than before."""

import csv
from pathlib import Path

from kvtier.facts import GroupKeys, RequestFacts, RequestHints
from kvtier.policy import EvictionPolicy
from kvtier.testing.policies import FixedFacts, chain, never, touch_chain
from kvtier.types import BlockKey

TURN_S = 10.0
_TRACE = Path(__file__).with_suffix(".csv")


def conversations() -> list[list[BlockKey]]:
    """Read the keys of every turn."""
    with _TRACE.open() as rows:
        return [chain(f"chat{row['chat']}/", int(row["chunks"])) for row in csv.DictReader(rows)]


def misses(policy: EvictionPolicy, capacity: int, peeks: int = 0, *, written: bool = False) -> int:
    """Replay the conversations against a policy: chunks that had to be computed.

    Before each eviction it is asked `peeks` times for a victim that then stays, as the brain does. `written`: victims are written down first. Asserts that the prefix rule holds throughout, so that what is here of a prefix is its head.
    """
    held: set[BlockKey] = set()
    missed = 0
    for turn, keys in enumerate(conversations()):
        if isinstance(policy.facts, FixedFacts):
            policy.facts.now = TURN_S * turn
        request = facts(str(turn), keys, TURN_S * turn)
        policy.arrived(request)
        n = sum(key in held for key in keys)
        assert set(keys[:n]) <= held, "a hole in a prefix"
        policy.started(request)
        touch_chain(policy, keys[:n])
        missed += len(keys) - n
        for _ in range(peeks):
            policy.victims(1, never)
        make_room(policy, held, len(held) + len(keys) - n - capacity, set(keys[:n]), written)
        fresh = list(zip(keys, [None, *keys], strict=False))[n : n + capacity - len(held)]
        for key, parent in reversed(fresh):
            policy.insert(key, parent)
            held.add(key)
        policy.departed(request)
    return missed


def make_room(
    policy: EvictionPolicy, held: set[BlockKey], lack: int, pinned: set[BlockKey], written: bool
) -> None:
    """Evict as the brain does; victims that are written down leave first, and are evicted as writes end."""
    victims = policy.victims(max(0, lack), pinned.__contains__)
    for batch in [victims] if written else [[victim] for victim in victims]:
        for victim in batch:
            policy.remove(victim)
        for victim in batch:
            policy.evicted(victim)
    held.difference_update(victims)


def facts(name: str, keys: list[BlockKey], now: float) -> RequestFacts:
    """Say what a policy is told of a request."""
    return RequestFacts(name, (GroupKeys(keys, 16, None),), now, RequestHints())
