"""Whose weights the chunks of a LoRA adapter are of, and which requests may use them.

vLLM's hash of a chunk holds an adapter's name and path, not its weights. So the ranks hash an adapter where vLLM reads it:

1. A step that computes with adapters has a number, and with its results every rank says which contents it has loaded.
2. All chunks of a name and path are of the content that it was first computed with. Once it is computed with another one,
   or with one that nobody knows, it is mixed: nothing of it is stored or hit, until kvtier and the device are empty.
3. What a request stores can be hit when its copies are done. By then it is known what it was computed with.
4. A hit is given if the ranks are about to compute with that content: with the one that they have loaded, or, where vLLM
   will read the files, with the one that was read from them if they did not change. A look of at most 10 s ago says that.
5. When vLLM was told to load or to unload an adapter, the next hit waits for a look.

No file is looked at here: one on a dead mount would stop the engine.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from kvtier.connectors.vllm import core_calls
from kvtier.connectors.vllm.looks import TRUST_S, WAIT_S, Looks

logger = logging.getLogger(__name__)

_MOST = 1 << 16
_PATHS = 32  # a look
_K = TypeVar("_K", bound=Hashable)

Content = tuple[bytes, ...]
"""The digest of an adapter's weights on each rank."""

_MIXED: Content = ()


class Lora(Protocol):
    """What vLLM says of an adapter."""

    lora_name: str
    lora_path: str
    lora_int_id: int


class Loaded(NamedTuple):
    """What one rank says with the results of a step; an empty digest is of what nobody knows."""

    rank: int
    step: int  # that computed with adapters; 0: it did not
    digests: dict[int, bytes]  # of what is loaded, by id
    expected: dict[str, bytes]  # of what would be read, by path


@dataclass(slots=True, eq=False)
class _Use:
    """One request's use of an adapter."""

    key: bytes  # its name and path
    lora: Lora
    look: int = 0  # which compares the files for it
    asked_at: float = -TRUST_S


class Adapters:
    """The contents of at most 65,536 adapters; chunks of further ones are not kept. EngineCore's main thread only."""

    def __init__(
        self,
        ranks: int,
        looks: Looks,
        *,
        promised: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen to vLLM; `promised`: no adapter ever changes under its path, so chunks outlive the engine."""
        self._ranks, self._looks, self._promised, self._clock = ranks, looks, promised, clock
        self._uses: dict[str, _Use] = {}  # by request
        self._labels: dict[bytes, Content] = {}  # by name and path: what its chunks are of
        self._loaded: dict[int, Content] = {}  # by id, on all ranks
        self._expected: dict[str, Content] = {}  # by path: what vLLM would read
        self._compare: dict[str, list[_Use]] = {}  # by path, for the next look: who waits for it
        self._computing: dict[int, Collection[_Use]] = {}  # by step
        self._steps = 0
        hears = [core_calls.listen(hook, looks.suspect) for hook in ("add_lora", "remove_lora")]
        self._deaf = not all(hears)

    def arrived(self, request: str, lora: Lora | None) -> None:
        """Note the adapter of a request, before it computes."""
        if lora is not None and request not in self._uses:
            name = repr((lora.lora_name, lora.lora_path)).encode()
            self._uses[request] = _Use(hashlib.sha256(name).digest()[:16], lora)

    def departed(self, request: str) -> None:
        """Forget a request."""
        self._uses.pop(request, None)

    def only(self, requests: Collection[str]) -> None:
        """Forget all other requests."""
        self._uses = {name: use for name, use in self._uses.items() if name in requests}

    def take_paths(self) -> list[str]:
        """Take the paths whose files the look that is ordered now compares; who waits for others waits for the next."""
        paths = list(self._compare)[:_PATHS]
        for path in paths:
            del self._compare[path]
        for uses in self._compare.values():
            for use in uses:
                use.look = self._looks.next
        return paths

    def step(self, scheduled: Iterable[str]) -> int:
        """Number the step that computes for these requests; 0: none of them has an adapter."""
        if not self._uses:
            return 0
        uses = [self._uses[name] for name in scheduled if name in self._uses]
        if not uses:
            return 0
        self._steps += 1
        once = {(use.key, use.lora.lora_int_id): use for use in uses}
        self._computing[self._steps] = once.values()
        return self._steps

    def heard(self, told: Collection[Loaded]) -> None:
        """Take what the ranks say with the results of a step."""
        if not told:
            return
        each = sorted(told)
        whole = len(each) == self._ranks
        self._loaded = _joined([one.digests for one in each]) if whole else {}
        if whole and any(one.expected for one in each):
            if len(self._expected) > _MOST:
                self._expected.clear()
            for path in each[0].expected:
                self._expected.pop(path, None)
            self._expected |= _joined([one.expected for one in each])
        step = max(one.step for one in each)
        for n in [n for n in self._computing if n <= step]:
            for use in self._computing.pop(n):
                content = self._loaded.get(use.lora.lora_int_id) if n == step else None
                self._computed(use, content or _MIXED)

    def key(self, request: str) -> bytes | None:
        """Give what chunks of a request's adapter are known by here; None: it has none."""
        use = self._uses.get(request)
        return use.key if use is not None else None

    def waits(self, request: str) -> bool:
        """Whether the ranks have yet to look at the files of a request's adapter."""
        use = self._uses.get(request)
        return use is not None and self._looks.answered < use.look

    def may_load(self, request: str) -> bool:
        """Whether a request may use the chunks of its adapter, once it does not wait."""
        use = self._uses.get(request)
        if use is None:
            return True
        label = self._labels.get(use.key)
        if label is None:
            return self._promised
        if label == _MIXED or self._deaf:
            return False
        if self._looks.answered < use.look:
            if use.look == self._looks.next:  # its path did not fit into the last one
                self._looks.want()
            return self._clock() - use.asked_at < WAIT_S
        in_place = getattr(use.lora, "load_inplace", False)
        loaded = None if in_place else self._loaded.get(use.lora.lora_int_id)
        if loaded is None and self._clock() - use.asked_at >= TRUST_S:
            self._compare_files(use)
            return True
        return label == (loaded or self._expected.get(use.lora.lora_path))

    def may_store(self, request: str) -> bool:
        """Whether it is of any use to store what a request computes."""
        use = self._uses.get(request)
        return use is None or not (self._deaf or self._labels.get(use.key) == _MIXED)

    def keeps(self, key: bytes | None) -> bool:
        """Whether chunks that are copied now can be hit; `key` as it was when they were offered."""
        return key is None or not (self._deaf or self._labels.get(key, _MIXED) == _MIXED)

    def reset(self) -> None:
        """Begin anew: there is neither a chunk nor KV on the device."""
        self._labels.clear()
        self._computing.clear()

    def _compare_files(self, use: _Use) -> None:
        """Let the next look find out whether files are as they were read."""
        use.asked_at, use.look = self._clock(), self._looks.next
        self._compare.setdefault(use.lora.lora_path, []).append(use)
        self._looks.want()

    def _computed(self, use: _Use, content: Content) -> None:
        """Note what an adapter was computed with."""
        label = self._labels.get(use.key)
        if label is None:
            if len(self._labels) < _MOST:
                self._labels[use.key] = content
        elif label not in (content, _MIXED):
            self._labels[use.key] = _MIXED
            logger.warning(
                "kvtier: LoRA adapter %r has other weights than before under the same path: nothing is stored or loaded"
                " for it until kvtier is reset; a new path needs no reset",
                use.lora.lora_name,
            )


def _joined(each: Iterable[Mapping[_K, bytes]]) -> dict[_K, Content]:
    """Join what the ranks have, as far as all of them know it."""
    first, *others = each
    known = {name for name in first if first[name] and all(other.get(name) for other in others)}
    return {name: (first[name], *(other[name] for other in others)) for name in known}
