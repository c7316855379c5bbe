"""Scores for policies that weigh chunks by them. The I/O process samples them when it has nothing else to do.

A chunk is scored some time after its store, if it is still there: the first victims may have no score.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable

from kvtier.brain.operations import Operation
from kvtier.brain.state import State
from kvtier.types import BlockKey, OpKind, OpStatus, Priority, TierOp

logger = logging.getLogger(__name__)

_MAX_WAITING = 65536  # chunks; the oldest fall out: they are the first to be evicted
_MAX_UNDER_WAY = 16
_FADE = 1 / 256  # weight of a new norm in the averages


class Scoring:
    """Order SCORE for what was stored, through the first lower tier that serves; without one there is none.

    The answer is a mean key norm. The score is the standard normal share of norms that are larger: small
    norms draw attention. Mean and deviation are moving averages over what was scored. A slot that is
    sampled is not held for it: what is read from a slot that changed hands is thrown away.
    """

    def __init__(self, state: State) -> None:
        self._residency = state.residency
        self._operations = state.operations
        self._lowers = state.lowers
        self._groups = state.groups
        self._on = bool(self._lowers) and any(policy.scored for policy in state.policies.eviction)
        self._waiting: deque[BlockKey] = deque(maxlen=_MAX_WAITING)
        self._under_way = 0
        self._mean = 0.0
        self._variance = 0.0
        self._scored = 0

    def stored(self, keys: Iterable[BlockKey]) -> None:
        """Take chunks that just came from the device."""
        if self._on:
            self._waiting.extend(keys)

    def tick(self) -> None:
        """Once per step: order what may be under way at once."""
        lower = next((low for low in self._lowers if low.serving), None)
        if lower is None:
            return
        while self._waiting and self._under_way < _MAX_UNDER_WAY:
            self._order(self._waiting.popleft(), lower.tier)

    def ended(self, operation: Operation, key: BlockKey) -> None:
        """Take the answer: a score, or that there will never be one."""
        self._under_way -= 1
        if operation.ok:
            if math.isfinite(operation.score) and self._residency.occupies(
                key, operation.op.target
            ):
                self._residency.rate(key, self._share_above(operation.score))
        elif operation.status is OpStatus.MISSING:
            self._turn_off()

    def clear(self) -> None:
        """Forget what was to be scored, and what is under way: its epoch has ended."""
        self._waiting.clear()
        self._under_way = 0

    def _order(self, key: BlockKey, tier: int) -> None:
        index = self._residency.index
        if not index.resident(key):
            return
        self._under_way += 1
        self._operations.order(
            TierOp(
                self._operations.number(),
                OpKind.SCORE,
                tier,
                key,
                group=self._groups.group(key).index,
                priority=Priority.IDLE,
                target=index.slots[index.rows[key]],
            )
        )

    def _share_above(self, norm: float) -> float:
        self._scored += 1
        weight = max(_FADE, 1 / self._scored)
        off = norm - self._mean
        self._mean += weight * off
        self._variance = (1 - weight) * (self._variance + weight * off * off)
        deviation = math.sqrt(self._variance)
        return 0.5 * math.erfc((norm - self._mean) / deviation / math.sqrt(2)) if deviation else 0.5

    def _turn_off(self) -> None:
        if self._on:
            self._on = False
            self._waiting.clear()
            logger.warning(
                "chunks cannot be scored on this backend (the log of the I/O process says why); the "
                "policies that weigh scores go by recency"
            )
