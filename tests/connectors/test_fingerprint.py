"""What a rank sees of its live weights: any kind of change, whatever the parameters have become, and no more than that."""

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from kvtier.connectors.vllm.fingerprint import (
    MOST_PIECES,
    PIECE,
    UNSEEN,
    Fingerprint,
    _middle,
    callers_model,
)

CPU = torch.device("cpu")


class Layer(nn.Module):
    """A layer of two kinds of parameters, and of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(64))
        self.qkv = nn.Linear(64, 96, bias=False)
        self.experts = nn.Linear(64, 64, bias=False)


class Model(nn.Module):
    """Layers, and an embedding that is tied to the head."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, 64)
        self.head = nn.Linear(64, 128, bias=False)
        self.head.weight = self.embed.weight
        self.layers = nn.ModuleList(Layer() for _ in range(layers))


def see(fingerprint: Fingerprint, number: int = 1) -> bytes:
    fingerprint.take(number)
    taken = fingerprint.taken()
    assert taken is not None
    assert taken[0] == number
    assert fingerprint.taken() is None, "it is told once"
    return taken[1]


def of(model: nn.Module, **how: bool) -> Fingerprint:
    known = weakref.ref(model)
    return Fingerprint(lambda: known(), CPU, **how)


@torch.no_grad()
def scale(parameter: torch.Tensor) -> None:
    parameter.mul_(0.5)


def plain(linear: Any) -> None:
    del linear.weight
    linear.weight = torch.zeros(96, 64)


CHANGES: dict[str, Callable[[Any], object]] = {
    "of a norm": lambda model: scale(model.layers[1].norm),
    "of a projection": lambda model: scale(model.layers[2].qkv.weight),
    "of experts": lambda model: scale(model.layers[0].experts.weight),
    "of a tied embedding": lambda model: scale(model.head.weight),
    "another tensor": lambda model: setattr(
        model.layers[0].qkv, "weight", nn.Parameter(torch.zeros(96, 64), requires_grad=False)
    ),
    "other data": lambda model: setattr(model.layers[0].norm, "data", torch.zeros(64)),
    "it is gone": lambda model: delattr(model.layers[0].qkv, "weight"),
    "it is meta": lambda model: model.layers[0].to("meta"),
    "it is empty": lambda model: setattr(model.layers[0].norm, "data", torch.empty(0)),
    "it is no parameter any more": lambda model: plain(model.layers[0].qkv),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_is_seen(how: str) -> None:
    model = Model()
    fingerprint = of(model)
    before = see(fingerprint)
    assert see(fingerprint, 2) == before != UNSEEN
    CHANGES[how](model)
    after = see(fingerprint, 3)
    assert after not in (before, UNSEEN)
    assert see(fingerprint, 4) == after


def test_a_look_is_not_lost_to_the_next_one() -> None:
    """On a device the result of one may come when the next has begun, and a reset compares with the first behind it."""
    model: Any = Model()
    fingerprint = of(model)
    for number in range(3):
        fingerprint.take(number)
        scale(model.layers[1].norm)
    taken = [*iter(fingerprint.taken, None)]
    assert [number for number, _ in taken] == [0, 1, 2]
    assert len({digest for _, digest in taken}) == 3
    for number in range(100):
        fingerprint.take(number)
    first, *others = iter(fingerprint.taken, None)
    assert first[0] == 0
    assert len(others) < 8
    assert others[-1][0] == 99


def test_another_model_in_its_place() -> None:
    models = [Model(), Model()]
    fingerprint = Fingerprint(lambda: models[0], CPU)
    before = see(fingerprint)
    del models[0]
    assert see(fingerprint) not in (before, UNSEEN)


def test_experts_that_move_are_not_looked_at() -> None:
    model: Any = Model()
    fingerprint = of(model, experts_move=True)
    before = see(fingerprint)
    scale(model.layers[1].experts.weight)
    assert see(fingerprint) == before
    scale(model.layers[1].norm)
    assert see(fingerprint) != before


def test_memory_that_layers_take_turns_in_is_not_looked_at() -> None:
    model: Any = Model()
    turns = torch.zeros(96, 64)
    for layer in model.layers:
        layer.qkv.weight = nn.Parameter(turns, requires_grad=False)
    fingerprint = of(model)
    before = see(fingerprint)
    turns.fill_(1.0)
    assert see(fingerprint) == before != UNSEEN


@pytest.mark.parametrize("layers", [30, 80, 400])
def test_of_many_layers_each_kind_is_seen_in_some_from_the_first_to_the_last(layers: int) -> None:
    model = Model(layers)
    fingerprint = of(model)
    see(fingerprint)
    places = fingerprint._places
    assert min(3 * layers + 1, MOST_PIECES // 2) < len(places) <= MOST_PIECES
    for i, kind in enumerate(("norm", "qkv.weight", "experts.weight")):
        names = {id(getattr(layer, kind.split(".")[0])): n for n, layer in enumerate(model.layers)}
        modules = {id(layer): n for n, layer in enumerate(model.layers)}
        seen = sorted(
            (modules | names)[id(module)]
            for place in places
            if id(module := place.module()) in modules | names
            and (place.name == "norm") == (i == 0)
            and (i == 0 or id(module) in names)
        )
        assert len(seen) >= min(layers, MOST_PIECES // 6)
        assert seen[0] < layers / 4
        assert seen[-1] > layers * 3 / 4


class Torn(torch.Tensor):
    """A tensor that is none: whatever is asked of it raises."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a torn tensor")


class Wrapper(torch.Tensor):
    """As quantisers make them, of several tensors: a shape without memory of its own."""

    @staticmethod
    def __new__(cls) -> "Wrapper":
        made: Wrapper = torch.Tensor._make_wrapper_subclass(cls, (64, 64))
        return made

    def __init__(self) -> None:
        self.parts = [torch.zeros(64, 64, dtype=torch.int8), torch.ones(64)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override] # as torch documents it
        raise NotImplementedError(func)


@pytest.mark.parametrize(
    "tensor",
    [
        lambda: torch.empty(64, 64, device="meta"),
        lambda: torch.empty(0),
        lambda: torch.zeros(4, 4).to_sparse(),
        lambda: torch.zeros(8).as_subclass(Torn),
        Wrapper,
        lambda: None,
        lambda: "weight",
    ],
)
def test_what_has_no_memory_of_its_own_here(tensor: Callable[[], object]) -> None:
    seen = _middle(tensor(), CPU) is not None
    assert not seen, "and nobody shows it, which would be the end of this process"


def test_what_is_looked_at_is_the_middle_and_never_beyond() -> None:
    whole = torch.arange(4 * PIECE, dtype=torch.int64)
    middle = _middle(whole, CPU)
    assert middle is not None
    assert len(middle) == PIECE
    first = int(middle.view(torch.int64)[0])
    assert middle.view(torch.int64).tolist() == list(range(first, first + PIECE // 8))
    for part in (whole[3:9], whole.view(128, 128)[:, 5:7], whole.view(128, 128).t()[40:43]):
        piece = _middle(part, CPU)
        assert piece is not None
        assert piece.untyped_storage().nbytes() == 4 * PIECE * 8, "nothing grew"
        values = piece.view(torch.int64)
        assert part.min() <= values.min()
        assert values.max() <= part.max()
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.int8, torch.bool):
        assert _middle(torch.zeros(3, dtype=dtype), CPU) is not None
    assert _middle(torch.zeros(3, requires_grad=True), CPU) is not None
    assert _middle(torch.tensor(1.0).expand(9), CPU) is not None


def no_model() -> nn.Module:
    raise ValueError("Cannot get model before model has been initialized")


@pytest.mark.parametrize(
    "blind",
    [
        Fingerprint(None, CPU),
        Fingerprint(lambda: None, CPU),
        Fingerprint(no_model, CPU),
        Fingerprint(lambda: nn.Identity(), CPU),
        Fingerprint(lambda: "model", CPU),  # type: ignore[arg-type,return-value] # whatever comes
        Fingerprint(Model, torch.device("meta")),
    ],
)
def test_where_nothing_is_seen_it_is_said_once(
    blind: Fingerprint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert [see(blind, n) for n in range(3)] == [UNSEEN] * 3
    (said,) = caplog.messages
    assert "weights that are changed in place are not noticed" in said


def test_no_weight_is_held() -> None:
    model: Any = Model()
    fingerprint = of(model)
    see(fingerprint)
    fingerprint.take(2)
    weight = weakref.ref(model.layers[0].qkv.weight)
    storage = weakref.ref(model.layers[0].qkv)
    model.layers[0].qkv = nn.Identity()
    gc.collect()
    assert weight() is storage() is None


class Runner:
    """A model runner that registers caches, below a worker and above connectors."""

    def __init__(self) -> None:
        self.model = Model()

    def get_model(self) -> nn.Module:
        return self.model

    def register(self) -> object:
        return Connector().register()


class Connector:
    """What is between a runner and a rank."""

    get_model = None

    def register(self) -> object:
        return callers_model()


def test_the_worker_that_calls_gives_its_model() -> None:
    runner = Runner()
    give: Any = runner.register()
    assert give() is runner.model
    runner.model = Model()
    assert give() is runner.model
    del runner
    gc.collect()
    assert give() is None
    assert Connector().register() is None
