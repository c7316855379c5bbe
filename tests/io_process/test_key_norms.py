"""Key norms, sampled by a real I/O process: right for every packing, or said to be impossible."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from kvtier.io_process.key_norms import key_norm, objection
from kvtier.layout import ELEMENTS, ChunkLayout
from kvtier.types import OpKind, OpStatus
from tests.io_process.rig import Bytes, Rig, file_tier, rig
from tests.packings import PACKINGS, Packing, layout, scatter

Dtype = Literal["bf16", "fp16", "fp32"]


def chunk_of(found: ChunkLayout, key: float, value: float) -> Bytes:
    """Make a chunk whose keys all have elements `key`, and values `value`."""
    chunk = np.zeros(found.nbytes, np.uint8)
    elements = chunk.view(ELEMENTS[found.dtype])
    for plane, number in ((found.keys, key), (found.values, value)):
        whole = np.full(found.shape, number, np.float32)
        if found.dtype == "bf16":
            bits = (whole.view(np.uint32) >> 16).astype(np.uint16)
            scatter(found, bits, chunk, plane, ("layers", "tokens", "heads", "dim"))
        else:
            cast = whole.astype(elements.dtype)
            scatter(found, cast, chunk, plane, ("layers", "tokens", "heads", "dim"))
    return chunk


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("blocks", [1, 4])
def test_the_norm_is_that_of_the_keys(packing: Packing, dtype: Dtype, blocks: int) -> None:
    found = layout(packing, dtype, layers=5, blocks=blocks)
    chunk = chunk_of(found, 0.5, 64.0)
    assert key_norm(chunk, found) == pytest.approx(0.5 * np.sqrt(32), rel=1e-3)


def test_what_cannot_be_scored_is_said_why() -> None:
    assert objection(layout()) == ""
    assert "8-bit" in objection(layout(dtype="fp8"))
    assert objection("holes") == "how keys lie in a page is not known: holes"


def test_a_score_through_the_io_process(tmp_path: Path) -> None:
    found = layout(layers=1, tokens=32, heads=4, dim=32)
    with rig([file_tier(tmp_path)], group_nbytes={0: found.nbytes}, layouts={0: found}) as io:
        norms = []
        for slot, key in enumerate([0.5, 2.0]):
            io.arena.slot(slot)[: found.nbytes] = chunk_of(found, key, 1.0)
            answer = io.one(OpKind.SCORE, target=slot)
            assert answer.status is OpStatus.OK
            norms.append(answer.score)
        assert norms == pytest.approx([0.5 * np.sqrt(32), 2 * np.sqrt(32)], rel=1e-2)


def test_no_layout_no_score(tmp_path: Path) -> None:
    with rig([file_tier(tmp_path)], layouts={0: "packed in no regular way"}) as io:
        answers = [one(io, 0), one(io, 1)]
    assert answers == [
        (OpStatus.MISSING, "how keys lie in a page is not known: packed in no regular way"),
        (OpStatus.MISSING, "how keys lie in a page is not known: nobody said"),
    ]


def one(io: Rig, group: int) -> tuple[OpStatus, str]:
    answer = io.one(OpKind.SCORE, group=group, target=0)
    return answer.status, answer.error
