"""What a new I/O process must be told again: under which namespace each tier goes on."""

from collections.abc import Container

from kvtier.types import OpKind, TierOp


class Namespaces:
    """Remember per tier the namespace that is certainly open, and every change since. One thread.

    A RESET stays until one was answered OK: what it should have made unreachable must not come back
    because a process died on the way.
    """

    def __init__(self) -> None:
        self._open: dict[int, TierOp] = {}
        self._changes: dict[int, list[TierOp]] = {}
        self._last_id = 0

    def record(self, op: TierOp, awaited: Container[int]) -> None:
        """Note an OPEN or RESET as it is submitted; it takes the place of those like it that failed.

        Those of which an answer is `awaited` stay: a new process must give it.
        """
        changes = self._changes.get(op.tier, [])
        kept = [each for each in changes if each.kind is not op.kind or each.op in awaited]
        self._changes[op.tier] = [*kept, op]

    def acknowledge(self, op_id: int) -> None:
        """Note that an operation was answered OK; others than changes are ignored."""
        for tier, changes in self._changes.items():
            for i, change in enumerate(changes):
                if change.op == op_id:
                    self._open[tier] = change._replace(kind=OpKind.OPEN)
                    self._changes[tier] = changes[i + 1 :]
                    return

    def ops(self, awaited: Container[int]) -> list[TierOp]:
        """List what to send to a new process; under ids of our own where nobody awaits an answer."""
        told = [self._renumbered(op) for op in self._open.values()]
        for tier, changes in self._changes.items():
            self._changes[tier] = [
                op if op.op in awaited else self._renumbered(op) for op in changes
            ]
            told += self._changes[tier]
        return told

    def _renumbered(self, op: TierOp) -> TierOp:
        self._last_id -= 1
        return op._replace(op=self._last_id)
