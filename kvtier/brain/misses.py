"""Why prompt tokens are computed: each chunk that a hit lacks has a reason."""

from kvtier.brain.index import TIERS
from kvtier.brain.metric import Tally
from kvtier.brain.requests import Request
from kvtier.brain.state import State
from kvtier.brain.why import Why
from kvtier.types import BlockKey


def missed(state: State, request: Request, start: int, end: int) -> Tally[Why]:
    """Give the tokens [start, end) of a prompt their reasons: those behind its hit, which has been given.

    The first chunk has the reason for which the hit ended. A later one that is nowhere has its own, and one that a
    tier holds that of the chunks before it. The tail is what no hit can have: vLLM computes the last token.
    """
    prefix, index = request.facts.prefix, state.residency.index
    tokens, found, at, why = prefix.chunk_tokens, Tally[Why](), start, request.why
    last = min((end - 1) // tokens, len(prefix.keys))
    for i in range(start // tokens, last):
        held = index.flags_of(prefix.keys[i]) & TIERS
        if why is None or (at > start and not held):
            why = Why.UNASKED if held else nowhere(state, prefix.keys[i])
        until = (i + 1) * tokens
        found[why] += until - at
        at = until
    found[Why.TAIL] += end - at
    return found


def nowhere(state: State, key: BlockKey) -> Why:
    """Say why no tier has a chunk."""
    if key in state.residency.evicted:
        return Why.EVICTED
    opening = not state.residency.slots.n or any(lower.opening for lower in state.lowers)
    if opening:
        return Why.OPENING
    return Why.DETACHED if any(lower.detached for lower in state.lowers) else Why.ABSENT
