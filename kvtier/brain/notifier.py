"""Who is told of a request's life: every policy, and what spares victims for it."""

from collections.abc import Callable, Sequence

from kvtier.brain.policies import PolicySet
from kvtier.brain.prefetch import Agenda
from kvtier.brain.requests import Request
from kvtier.brain.victims import Victims
from kvtier.policy import AdmissionPolicy, EvictionPolicy, Move
from kvtier.types import BlockKey


class Notifier:
    """Tells every policy of a request's life. The moves that policies ask for later wait in an agenda."""

    def __init__(
        self,
        policies: PolicySet,
        victims: Victims,
        agenda: Agenda,
        clock: Callable[[], float],
    ) -> None:
        self._deciding: list[EvictionPolicy | AdmissionPolicy] = [*policies.eviction]
        self._deciding += filter(None, policies.admission)
        self._prefetch = policies.prefetch
        self._victims = victims
        self._agenda = agenda
        self._clock = clock

    def arrived(self, request: Request) -> list[Move]:
        """Tell of a new request; return what is to come up now."""
        self._victims.spare(request)
        for policy in self._deciding:
            policy.arrived(request.facts)
        now: list[Move] = []
        for prefetch in self._prefetch:
            for move in prefetch.arrived(request.facts):
                if not move.up or move.at_s > self._clock():
                    self._agenda.add((move,))
                elif request.reads:
                    now.append(move)
        return now

    def started(self, request: Request) -> None:
        """Tell, once, that a request was scheduled."""
        if not request.start():
            return
        self._victims.release(request)
        for policy in (*self._deciding, *self._prefetch):
            policy.started(request.facts)

    def accessed(self, request: Request, keys: Sequence[BlockKey]) -> None:
        """Tell prefetch policies of a hit."""
        for policy in self._prefetch:
            self._agenda.add(policy.accessed(request.facts, keys))

    def departed(self, request: Request) -> None:
        """Tell that a request is over."""
        request.start()
        self._victims.release(request)
        for policy in self._deciding:
            policy.departed(request.facts)
        for prefetch in self._prefetch:
            self._agenda.add(prefetch.departed(request.facts))
