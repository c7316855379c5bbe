"""What a rank's live weights look like: a digest of small pieces of some parameters, spread over layers and kinds.

A look is taken at the beginning of a step and in the order of the device's stream: behind every change that was made
before, and done when the step's results are. Nobody waits for it, no weight is held meanwhile, and nothing raises. None
is lost to the next one: the first after a reset is what all later ones are compared with.
"""

import inspect
import logging
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import xxhash

logger = logging.getLogger(__name__)

MOST_PIECES = 64
PIECE = 4096  # bytes
_MOST_LOOKS = 4  # under way; vLLM has two or three steps at most
UNSEEN = b""
"""The digest of weights that cannot be looked at."""

Model = Callable[[], torch.nn.Module | None]


class _Place(NamedTuple):
    """Where a parameter is found. vLLM may put another tensor there."""

    module: "weakref.ref[torch.nn.Module]"
    name: str

    def tensor(self) -> object:
        """Give what is there now."""
        return getattr(self.module(), self.name, None)


class _Look(NamedTuple):
    """A look under way: the pieces, end to end, and how long each is."""

    number: int
    lengths: tuple[int, ...] = ()
    pieces: torch.Tensor | None = None
    copied: torch.Event | None = None  # None: they are there


class Fingerprint:
    """The pieces of one rank. Called from the worker's main thread, while the weights are mapped."""

    def __init__(
        self, model: Model | None, device: torch.device, *, experts_move: bool = False
    ) -> None:
        """Look at what `model` gives, as far as it is on the device.

        Args:
            model: gives the model that the rank computes with; None: nobody knows it.
            experts_move: expert weights change places while the engine runs, and are not looked at.
        """
        self._give = model
        self._device = device
        self._experts_move = experts_move
        self._model: weakref.ref[torch.nn.Module] | None = None
        self._places: Sequence[_Place] = ()
        self._looks: deque[_Look] = deque()  # that nobody has the result of
        self._blind = False

    def take(self, number: int) -> None:
        """Begin a look; where too many have no result yet, the last of them is forgotten."""
        if len(self._looks) >= _MOST_LOOKS:
            self._looks.pop()
        look = _Look(number)
        try:
            look = self._begin(number)
        except Exception as exc:  # whatever becomes of a model while others work on it
            self._say(f"{type(exc).__name__}: {exc}")
        self._looks.append(look)

    def taken(self) -> tuple[int, bytes] | None:
        """Give the number and the digest of the oldest look once, as soon as it is done."""
        if not self._looks:
            return None
        look = self._looks[0]
        if look.copied is not None and not look.copied.query():
            return None
        self._looks.popleft()
        if look.pieces is None:
            return look.number, UNSEEN
        seen = xxhash.xxh3_128(repr(look.lengths).encode())
        seen.update(look.pieces.numpy())
        return look.number, seen.digest()

    def _begin(self, number: int) -> _Look:
        model = self._give() if self._give else None
        if model is None or self._device.type not in ("cpu", "cuda"):
            self._say("this vLLM does not show its model, or not on this kind of device")
            return _Look(number)
        if self._model is None or self._model() is not model:
            self._model = weakref.ref(model)
            self._places = _spread(dict(self._usable(model)))
        found = [_middle(place.tensor(), self._device) for place in self._places]
        pieces = [piece for piece in found if piece is not None]
        if not pieces:
            self._say("the model has no parameter that can be looked at")
            return _Look(number)
        lengths = tuple(-1 if piece is None else len(piece) for piece in found)
        joined = torch.cat(pieces)
        if self._device.type == "cpu":
            return _Look(number, lengths, joined)
        host = torch.empty(len(joined), dtype=torch.uint8, pin_memory=True)  # torch keeps some
        copied = torch.Event(self._device)
        # On the stream that computes: asleep, the weights are unmapped, and vLLM waits for that stream before.
        host.copy_(joined, non_blocking=True)
        copied.record()
        return _Look(number, lengths, host, copied)

    def _usable(self, model: torch.nn.Module) -> Iterator[tuple[str, _Place]]:
        """List the parameters by name. Those that share their memory may be there one after the other: they are not in it."""
        sharing: dict[int, dict[int, tuple[str, _Place]]] = {}
        for path, module in model.named_modules():
            if self._experts_move and "expert" in path:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                piece = _middle(parameter, self._device)
                if piece is not None:
                    found = (f"{path}.{name}", _Place(weakref.ref(module), name))
                    sharing.setdefault(piece.data_ptr(), {})[id(parameter)] = found
        for sharers in sharing.values():
            if len(sharers) == 1:
                yield from sharers.values()

    def _say(self, why: str) -> None:
        if not self._blind:
            logger.warning(
                "kvtier: weights that are changed in place are not noticed (%s): whoever changes them must reset kvtier too",
                why,
            )
        self._blind = True


def _spread(found: dict[str, _Place]) -> list[_Place]:
    """Choose from each kind of parameter some layers, of each kind other ones."""
    kinds: dict[str, list[_Place]] = {}
    for name, place in found.items():
        kinds.setdefault(re.sub(r"\d+", "#", name), []).append(place)
    each = max(1, MOST_PIECES // max(1, len(kinds)))
    chosen = []
    for i, places in enumerate(kinds.values()):
        n = min(each, len(places))
        apart, first = len(places) / n, i / len(kinds)
        chosen += [places[int((k + first) * apart)] for k in range(n)]
    return chosen[:: max(1, -(-len(chosen) // MOST_PIECES))]


def _middle(tensor: object, device: torch.device) -> torch.Tensor | None:
    """Show the bytes in the middle of what a parameter spans; None where it has none of its own on the device."""
    try:
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != device.type:
            return None
        if not tensor.numel():
            return None
        size, storage = tensor.element_size(), tensor.untyped_storage()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = size * (1 + sum((n - 1) * by for n, by in steps))
        nbytes = min(span, PIECE)
        start = size * tensor.storage_offset() + (span - nbytes) // 2 // size * size
        if not storage.data_ptr() or start + nbytes > storage.nbytes():  # nowhere, or it would grow
            return None
        empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        return empty.set_(storage, start, (nbytes,), (1,))
    except Exception:  # a tensor that is several, or none
        return None


def callers_model() -> Model | None:
    """Find out how the worker gives its model: it waits for this call to return.

    vLLM hands a connector its caches and no model. But the caches are registered by a model runner in a worker, and
    `get_model` is a public method of both.
    """
    frame = inspect.currentframe()
    while frame is not None:
        give = getattr(frame.f_locals.get("self"), "get_model", None)
        if inspect.ismethod(give):
            return _weakly(weakref.WeakMethod(give))
        frame = frame.f_back
    return None


def _weakly(known: "weakref.WeakMethod[Model]") -> Model:
    def model() -> torch.nn.Module | None:
        give = known()
        return give() if give is not None else None

    return model
