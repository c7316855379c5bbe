"""Sessions as templates: what a synthetic trace is resampled from.

Where a trace names no sessions, a request continues the conversation whose whole last prompt it begins with
(but for that prompt's last block, which may have been cut short).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.trace.trace import NO_SESSION, Ids, Trace


class Turn(NamedTuple):
    """One request of a template."""

    gap_s: float  # since the request before it
    think_s: float  # NaN: the source does not say
    prompt_tokens: int
    output_tokens: int
    shared: Ids  # ids that other sessions have too, as they are
    private: Ids  # positions among the template's own blocks


class Template(NamedTuple):
    """One session of the source."""

    start_s: float
    turns: tuple[Turn, ...]
    private: int  # how many blocks are its own


def templates(trace: Trace) -> list[Template]:
    """Split a trace into sessions, in order of their starts."""
    of = lineages(trace)
    shared = _shared(trace, of)
    members: dict[int, list[int]] = {}
    for i, lineage in enumerate(of.tolist()):
        members.setdefault(lineage, []).append(i)
    return [_template(trace, requests, shared) for requests in members.values()]


def lineages(trace: Trace) -> npt.NDArray[np.int64]:
    """Number the session of each request: the trace's own, else by its prefixes."""
    if (trace.session != NO_SESSION).all():
        return trace.session.astype(np.int64)
    of = np.zeros(len(trace), np.int64)
    open_at: dict[int, int] = {}  # the last block that a conversation is sure of -> its number
    fresh = 0
    for i in range(len(trace)):
        blocks = trace.blocks(i).tolist()
        found = next((open_at[block] for block in reversed(blocks) if block in open_at), None)
        of[i] = fresh if found is None else found
        fresh += found is None
        if blocks:
            open_at = _advance(open_at, blocks, int(of[i]))
    return of


def _advance(open_at: dict[int, int], blocks: list[int], lineage: int) -> dict[int, int]:
    """Let a conversation be found by its newest prompt only; a prompt of one block is too short for that."""
    for block in blocks:
        if open_at.get(block) == lineage:
            del open_at[block]
    if len(blocks) > 1:
        open_at[blocks[-2]] = lineage
    return open_at


def _shared(trace: Trace, of: npt.NDArray[np.int64]) -> set[int]:
    """Return the blocks that more than one session has."""
    owner = np.repeat(of, np.diff(trace.starts))
    _, first, dense = np.unique(trace.ids, return_index=True, return_inverse=True)
    foreign = owner != owner[first][dense]
    return set(trace.ids[foreign].tolist())


def _template(trace: Trace, requests: list[int], shared: set[int]) -> Template:
    known: dict[int, int] = {}
    turns = []
    last = float(trace.at_s[requests[0]])
    for i in requests:
        blocks = trace.blocks(i).tolist()
        n = next((j for j, block in enumerate(blocks) if block not in shared), len(blocks))
        own = [known.setdefault(block, len(known)) for block in blocks[n:]]
        at = float(trace.at_s[i])
        turns.append(
            Turn(
                at - last,
                float(trace.think_s[i]),
                int(trace.prompt_tokens[i]),
                int(trace.output_tokens[i]),
                np.array(blocks[:n], np.int64),
                np.array(own, np.int64),
            )
        )
        last = at
    return Template(float(trace.at_s[requests[0]]), tuple(turns), len(known))


def drawn(seed: int, block_tokens: int, model: "Drawn") -> Iterator[Template]:
    """Draw sessions without end, from the distributions of `Drawn`."""
    rng = np.random.default_rng(seed)
    n = model.system_tokens // block_tokens
    weights = 1 / np.arange(1, model.systems + 1)
    at = 0.0
    while True:
        system = int(rng.choice(model.systems, p=weights / weights.sum()))
        shared = np.arange(system * n, (system + 1) * n, dtype=np.int64)
        yield _drawn_template(rng, block_tokens, model, shared, at)
        at += float(rng.exponential(1 / model.session_rate))


class Drawn(NamedTuple):
    """The distributions of a trace without a source.

    Sessions start as a Poisson process; turns are geometric; thinking, user texts and answers are
    log-normal, given by median and sigma; the system prompt's rank follows Zipf's law (weight 1/rank).
    """

    session_rate: float = 3.0  # per second
    turns: float = 4.0  # mean
    think_s: tuple[float, float] = (60.0, 1.2)
    user_tokens: tuple[float, float] = (800.0, 1.2)
    output_tokens: tuple[float, float] = (250.0, 0.8)
    systems: int = 16
    system_tokens: int = 1024
    decode_rate: float = 50.0  # tokens per second: how long an answer takes


def _drawn_template(
    rng: np.random.Generator, block_tokens: int, model: Drawn, shared: Ids, at: float
) -> Template:
    turns: list[Turn] = []
    prompt = len(shared) * block_tokens
    answer = 0
    for _ in range(int(rng.geometric(1 / model.turns))):
        think = _lognormal(rng, model.think_s)
        gap = think + answer / model.decode_rate if turns else 0.0
        prompt += answer + max(1, int(_lognormal(rng, model.user_tokens)))
        answer = max(1, int(_lognormal(rng, model.output_tokens)))
        own = np.arange(max(0, prompt // block_tokens - len(shared)), dtype=np.int64)
        turns.append(Turn(gap, think if turns else 0.0, prompt, answer, shared, own))
    return Template(at, tuple(turns), len(turns[-1].private))


def _lognormal(rng: np.random.Generator, of: tuple[float, float]) -> float:
    return float(rng.lognormal(np.log(of[0]), of[1]))
