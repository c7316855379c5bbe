"""How old chunks get, how long they lie idle, and after how long one is used again: of a sample, one key in 64."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kvtier.brain.metric import Samples
from kvtier.types import BlockKey

_ONE_IN = 64
_MOST_GONE = 4096  # evicted ones that are remembered


@dataclass(slots=True)
class _Life:
    used: float
    entered: dict[int, float] = field(default_factory=dict)  # by tier


class Ages:
    """Follows the chunks of the sample; it holds one entry for each that a tier has, and a few thousand that are gone."""

    def __init__(self, tiers: int, clock: Callable[[], float]) -> None:
        self.age = [Samples() for _ in range(tiers)]
        self.idle = [Samples() for _ in range(tiers)]
        self.reuse, self.regret = Samples(), Samples()
        self._clock = clock
        self._lives: dict[BlockKey, _Life] = {}
        self._gone: OrderedDict[BlockKey, float] = OrderedDict()

    def entered(self, tier: int, keys: Iterable[BlockKey]) -> None:
        """Note chunks that a tier has from now on."""
        for key in _sample(keys):
            now = self._clock()
            life = self._lives.get(key)
            if life is None:
                life = self._lives[key] = _Life(now)
                if (gone := self._gone.pop(key, None)) is not None:
                    self.regret.note(now - gone)
            life.entered[tier] = now

    def used(self, keys: Iterable[BlockKey]) -> None:
        """Note a hit."""
        for key in _sample(keys):
            if (life := self._lives.get(key)) is not None:
                now = self._clock()
                self.reuse.note(now - life.used)
                life.used = now

    def left(self, tier: int, keys: Iterable[BlockKey]) -> None:
        """Note chunks that a tier has no more."""
        for key in _sample(keys):
            life = self._lives.get(key)
            if life is None or (entered := life.entered.pop(tier, None)) is None:
                continue
            now = self._clock()
            self.age[tier].note(now - entered)
            self.idle[tier].note(now - max(life.used, entered))
            if not life.entered:
                del self._lives[key]
                self._gone[key] = now
                if len(self._gone) > _MOST_GONE:
                    self._gone.popitem(last=False)

    def clear(self) -> None:
        """Forget every chunk."""
        self._lives.clear()
        self._gone.clear()


def _sample(keys: Iterable[BlockKey]) -> list[BlockKey]:
    return [key for key in keys if not hash(key) % _ONE_IN]
