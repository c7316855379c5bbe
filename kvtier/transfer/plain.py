"""The plain way: torch's own kernels gather chunks in a buffer on the device. Needs no driver and no CuPy."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from kvtier.transfer.page_map import NO_BLOCK, Work
from kvtier.transfer.paths import STAGE_NBYTES, Direction, Mover, Setup
from kvtier.transfer.streams import Mark

_WORDS = (torch.int64, torch.int32, torch.int16, torch.int8)


class PlainMover(Mover):
    """Gathers per tensor with `index_select`, scatters with `index_copy_`; one copy per chunk and slot."""

    def __init__(
        self, site: Setup, pages: Mapping[int, Sequence[torch.Tensor]], direction: Direction
    ) -> None:
        self._site = site
        self._pages = {g: [_words(tensor) for tensor in tensors] for g, tensors in pages.items()}
        self._direction = direction

    def move(self, work: Work, stream: int, after: Mark) -> None:
        step = self._offload if self._direction is Direction.OFFLOAD else self._onload
        self._site.streams.after(stream, after)
        for part in work.parts(max(1, STAGE_NBYTES // self._site.layout.chunk_nbytes(work.group))):
            self._site.streams.run(stream, partial(step, part))

    def _offload(self, part: Work) -> None:
        blocks = self._upload(np.maximum(part.blocks, 0))
        empty = part.blocks.ravel() == NO_BLOCK
        chunks: list[torch.Tensor] = []
        for tensor in self._pages[part.group]:
            rows = tensor.index_select(0, blocks)
            if empty.any():
                rows.index_fill_(0, self._upload(np.flatnonzero(empty)), 0)
            chunks.append(rows.view(torch.int8).view(len(part.slots), -1))
        stage = torch.cat(chunks, dim=1)
        for slot, chunk in zip(self._slots(part), stage, strict=True):
            slot.copy_(chunk, non_blocking=True)

    def _onload(self, part: Work) -> None:
        there = np.flatnonzero(part.blocks.ravel() != NO_BLOCK)
        blocks, rows = self._upload(part.blocks.ravel()[there]), self._upload(there)
        nbytes = self._site.layout.chunk_nbytes(part.group)
        stage = torch.empty((len(part.slots), nbytes), dtype=torch.int8, device=self._site.device)
        for slot, chunk in zip(self._slots(part), stage, strict=True):
            chunk.copy_(slot, non_blocking=True)
        start = 0
        for tensor in self._pages[part.group]:
            end = start + tensor.shape[1] * tensor.element_size() * part.blocks.shape[1]
            pages = stage[:, start:end].clone(memory_format=torch.contiguous_format)
            pages = pages.view(part.blocks.size, -1)
            tensor.index_copy_(0, blocks, pages.view(tensor.dtype).index_select(0, rows))
            start = end

    def _slots(self, part: Work) -> list[torch.Tensor]:
        nbytes = self._site.layout.chunk_nbytes(part.group)
        slots = (self._site.arena.slot(int(slot))[:nbytes] for slot in part.slots)
        return [torch.from_numpy(slot.view(np.int8)) for slot in slots]

    def _upload(self, numbers: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> torch.Tensor:
        """Bring indices to the device without waiting for it, which takes pinned memory."""
        here = torch.from_numpy(np.ascontiguousarray(numbers.ravel()))
        if self._site.device.type == "cpu":
            return here
        return here.pin_memory().to(self._site.device, non_blocking=True)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """View pages as the widest numbers that their size, place and distance allow."""
    for dtype in _WORDS:
        n = dtype.itemsize
        if not (tensor.shape[1] % n or tensor.stride(0) % n or tensor.storage_offset() % n):
            return tensor.view(dtype)
    return tensor
