"""What a worker of an engine under test has beside vLLM's own: weights for `load_format: dummy`, and wrong slots.

vLLM imports this module in each worker (`worker_extension_cls`) before it loads the model.
"""

import functools
import itertools
import math
import zlib
from typing import Any

_GAINS = (
    (("o_proj", "out_proj", "dense"), 1.5),  # what a head reads outweighs what the token itself is
    (("qkv", "q_proj", "k_proj", "kv_a", "kv_b", "q_a", "q_b"), 1.9),  # attention is peaked
    (("lm_head",), 8.0),  # a greedy choice is far from a tie
    (("conv",), 1.5),
)


class Extension:
    """Called by `collective_rpc`."""

    def shift_slots(self: Any, slots: list[int]) -> None:
        """Move what these slots hold by one slot."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        arena = get_kv_transfer_group().rank.worker.arena
        first = arena.slot(slots[0]).copy()
        for slot, following in itertools.pairwise(slots):
            arena.slot(slot)[:] = arena.slot(following)
        arena.slot(slots[-1])[:] = first


def _give_weights() -> None:
    """Let vLLM's dummy weights be such that every answer depends on the whole context."""
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    theirs = DummyModelLoader.load_weights

    @functools.wraps(theirs)
    def load_weights(self: Any, model: Any, model_config: Any) -> None:
        theirs(self, model, model_config)
        for name, parameter in model.named_parameters():
            _fill(name.lower(), parameter)

    if not hasattr(theirs, "__wrapped__"):
        DummyModelLoader.load_weights = load_weights


def _fill(name: str, parameter: Any) -> None:
    import torch

    if not torch.is_floating_point(parameter) or parameter.device.type == "meta":
        return
    rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    parameter.data.copy_(_weights(name, parameter.shape, rng).to(parameter.dtype))


def _weights(name: str, shape: Any, rng: Any) -> Any:
    import torch

    if "a_log" in name:  # states that fade slowly
        return torch.log(torch.rand(shape, generator=rng) * 0.2 + 0.02)
    if "dt_bias" in name:
        return torch.rand(shape, generator=rng) - 2.0
    if "sinks" in name:
        return torch.randn(shape, generator=rng)
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) <= 1 or "norm" in name:
        return torch.ones(shape)
    return torch.randn(shape, generator=rng) * (_gain(name, shape[-1]) / math.sqrt(shape[-1]))


def _gain(name: str, columns: int) -> float:
    if "embed" in name:
        return math.sqrt(columns)
    return next((gain for parts, gain in _GAINS if any(part in name for part in parts)), 1.0)


def _let_experts_meet() -> None:
    """Give vLLM's CPU build the two collectives that it lacks for experts of several engines."""
    import torch
    from torch import distributed
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    def all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: Any = None) -> Any:
        if isinstance(input_, list):
            return [all_gatherv(self, one, dim, sizes) for one in input_]
        assert dim == 0
        rows = sizes or [input_.shape[0]] * self.world_size
        parts = [input_.new_empty((count, *input_.shape[1:])) for count in rows]
        parts[self.rank_in_group] = input_.contiguous()
        for rank, part in zip(self.ranks, parts, strict=True):
            distributed.broadcast(part, src=rank, group=self.cpu_group)
        return torch.cat(parts)

    def reduce_scatterv(self: Any, input_: Any, dim: int = 0, sizes: Any = None) -> Any:
        assert dim == 0
        total = input_.clone()
        distributed.all_reduce(total, group=self.cpu_group)
        rows = sizes or total.shape[0] // self.world_size
        return total.split(rows)[self.rank_in_group].contiguous()

    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv


_give_weights()
_let_experts_meet()
