"""Whose weights the chunks of a LoRA adapter are of, and which requests may use them.

vLLM's hash of a chunk holds an adapter's name and path, not its weights. So the ranks hash an adapter's weights where vLLM
reads them, and say what they have loaded:

1. The first chunk of a name and path says of which content all of its chunks are. A request stores and loads while the
   ranks have that content loaded under the request's id, and have had it since the request began.
2. When vLLM is told to load or unload an adapter, and for each request that says `load_inplace` itself, the next hit
   waits for a look of the ranks. For the latter they look at the files too: what is not as it was when it was read counts
   as not loaded, because vLLM will read it again.
3. Other content under the same name and path is neither stored nor hit, until the whole cache is reset.

No file is looked at here: one on a dead mount would stop the engine.
"""

import hashlib
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

from kvtier.connectors.vllm import core_calls
from kvtier.connectors.vllm.looks import Looks

_MOST = 1 << 16
_PATIENCE = 16  # steps

Content = tuple[bytes, ...]
"""The digest of an adapter's weights on each rank; b'' where it has none."""


class Lora(Protocol):
    """What vLLM says of an adapter."""

    lora_name: str
    lora_path: str
    lora_int_id: int


class Loaded(NamedTuple):
    """The digests of all adapters that a rank has loaded, by id, at a look or after it."""

    rank: int
    look: int
    digests: dict[int, bytes]


class MayStore(Enum):
    """Whether what a request computes with its adapter may be stored."""

    YES = auto()
    LATER = auto()  # offer it again: the ranks have not said yet what they have loaded
    NO = auto()


@dataclass(slots=True, eq=False, weakref_slot=True)
class Use:
    """One request's use of an adapter."""

    key: bytes  # its name and path
    id: int
    since: int  # where it is read again for this request: the first look after that came
    content: Content | None = None  # what its first stored chunk was computed with
    mixed: bool = False  # it may have been computed with several
    patience: int = _PATIENCE

    def restart(self) -> None:
        """Begin again from nothing."""
        self.content, self.mixed = None, False


class Adapters:
    """The contents of at most 65,536 adapters; chunks of further ones are not kept. EngineCore's main thread only."""

    def __init__(self, ranks: int, looks: Looks) -> None:
        self._ranks = ranks
        self._looks = looks
        self._contents: dict[bytes, Content] = {}  # by adapter: of its chunks
        self._told: dict[int, Loaded] = {}  # by rank
        self._loaded: dict[int, Content] = {}  # by id: what all ranks have
        self._look = 0  # they all had it then, or later
        self._since: dict[
            int, int
        ] = {}  # by id: the first look after vLLM was told to load or unload it
        self._check: dict[int, str] = {}  # by id: the path that the ranks are to look at
        self._uses: weakref.WeakSet[Use] = weakref.WeakSet()
        hears = [core_calls.listen(hook, self._called) for hook in ("add_lora", "remove_lora")]
        self._deaf = not all(hears)

    def arrived(self, lora: Lora | None) -> Use | None:
        """Note the adapter of a request; None: it has none."""
        if lora is None:
            return None
        number, since = lora.lora_int_id, 0
        if getattr(lora, "load_inplace", False):
            self._check[number] = lora.lora_path
            self._looks.suspect()
            since = self._looks.next
        name = repr((lora.lora_name, lora.lora_path)).encode()
        use = Use(hashlib.sha256(name).digest()[:16], number, since)
        self._uses.add(use)
        return use

    def take_checks(self) -> dict[int, str]:
        """Take the paths that the ranks are to look at, by id."""
        checks, self._check = self._check, {}
        return checks

    def heard(self, told: Iterable[Loaded]) -> None:
        """Take what ranks have loaded. Whoever was computed with what has changed is of several contents."""
        self._told |= {each.rank: each for each in told}
        if len(self._told) < self._ranks:
            return
        everybody = [self._told[rank] for rank in sorted(self._told)]
        ids = set(everybody[0].digests).intersection(*(each.digests for each in everybody))
        loaded = {number: tuple(each.digests[number] for each in everybody) for number in ids}
        for use in self._uses:
            old, new = self._loaded.get(use.id), loaded.get(use.id)
            # what is dropped and read again by the next step is a change only for whom has used it
            use.mixed |= old not in (None, new) and not (new is None and use.content is None)
        self._loaded = loaded
        self._look = min(each.look for each in everybody)
        self._since = {number: look for number, look in self._since.items() if look > self._look}

    def may_load(self, use: Use | None) -> bool:
        """Whether a request may use the chunks of its adapter; while the ranks have yet to look, its hit waits."""
        if use is None:
            return True
        if self._deaf or use.mixed:
            return False
        content = self._content(use)
        if content is None:
            return self._looks.answered < self._needed(use)
        if self._contents.get(use.key) != content:
            return False
        use.content = content
        return True

    def may_store(self, use: Use | None) -> MayStore:
        """Say whether what a request has computed now may be stored."""
        if use is None:
            return MayStore.YES
        content = self._content(use)
        if content is None and not (self._deaf or use.mixed) and use.patience > 0:
            use.patience -= 1
            return MayStore.LATER
        if not content or self._deaf or use.mixed or use.content not in (None, content):
            return MayStore.NO
        use.content = content
        if use.key not in self._contents and len(self._contents) < _MOST:
            self._contents[use.key] = content
        return MayStore.YES if self._contents.get(use.key) == content else MayStore.NO

    def reset(self) -> None:
        """Forget what chunks are of: there are none left."""
        self._contents.clear()

    def _content(self, use: Use) -> Content | None:
        """Give what all ranks have loaded for a request; None: that is not known, or nothing."""
        content = self._loaded.get(use.id)
        known = content is not None and b"" not in content and self._look >= self._needed(use)
        return content if known else None

    def _needed(self, use: Use) -> int:
        """Give the look before which nobody knows what a request computes with."""
        return max(use.since, self._since.get(use.id, 0))

    def _called(self, about: "Lora | int", _: object) -> None:
        """Hear that vLLM was told to load an adapter, or to unload one by its id."""
        self._looks.suspect()
        try:
            number = about if isinstance(about, int) else about.lora_int_id
        except AttributeError:
            self._deaf = True
            raise
        self._since[number] = self._looks.next
