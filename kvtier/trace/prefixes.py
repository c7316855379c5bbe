"""The prefix structure of traces that tell lengths only, drawn by a stated model.

A request continues, with probability `continues`, the most recent conversation that could be its past: one
whose prompt and answer together are shorter than its prompt, idle for less than `memory_s`. Its first blocks
are then all of that. Else it begins a conversation behind one of `systems` shared system prompts of
`system_tokens`, drawn by Zipf's law (rank r with weight 1/r).
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from kvtier.trace.formats.base import Drawing
from kvtier.trace.trace import Ids, Row, check_tokens

_OPEN = 512  # conversations looked through


class _Conversation(NamedTuple):
    session: int
    at_s: float
    tokens: int  # of its last prompt and answer
    blocks: Ids


class PrefixModel:
    """Draw the block ids of one request after the other."""

    def __init__(self, drawing: Drawing, block_tokens: int) -> None:
        self._drawing = drawing
        self._block_tokens = block_tokens
        self._rng = drawing.rng()
        self._open: deque[_Conversation] = deque(maxlen=_OPEN)
        self._next = 0
        self._sessions = 0
        n = drawing.system_tokens // block_tokens
        self._systems = [self._fresh(n) for _ in range(drawing.systems)]
        self._weights = [1 / rank for rank in range(1, drawing.systems + 1)]

    def draw(self, at_s: float, prompt_tokens: int, output_tokens: int) -> Row:
        """Give one request its blocks; a length or a time that no request has is a ValueError."""
        check_tokens(prompt_tokens, output_tokens)
        if not 0 <= at_s < math.inf:
            raise ValueError(f"second {at_s:g}")
        past = self._past(at_s, prompt_tokens)
        if past is None:
            self._sessions += 1
            session, head = self._sessions - 1, self._system()
        else:
            session, head = past.session, past.blocks
        n = prompt_tokens // self._block_tokens
        blocks = np.concatenate((head[:n], self._fresh(max(0, n - len(head)))))
        self._remember(session, at_s, prompt_tokens + output_tokens, blocks)
        return Row(at_s, prompt_tokens, output_tokens, blocks, session)

    def _past(self, at_s: float, prompt_tokens: int) -> _Conversation | None:
        if self._rng.random() >= self._drawing.continues:
            return None
        for i in range(len(self._open) - 1, -1, -1):
            one = self._open[i]
            if one.tokens < prompt_tokens and at_s - one.at_s <= self._drawing.memory_s:
                del self._open[i]
                return one
        return None

    def _remember(self, session: int, at_s: float, tokens: int, blocks: Ids) -> None:
        """Keep the conversation, with blocks for the answer that its next prompt will repeat."""
        answer = self._fresh(max(0, tokens // self._block_tokens - len(blocks)))
        self._open.append(_Conversation(session, at_s, tokens, np.concatenate((blocks, answer))))

    def _system(self) -> Ids:
        if not self._systems:
            return self._fresh(0)
        return self._rng.choices(self._systems, self._weights)[0]

    def _fresh(self, n: int) -> Ids:
        ids = np.arange(self._next, self._next + n, dtype=np.int64)
        self._next += n
        return ids
