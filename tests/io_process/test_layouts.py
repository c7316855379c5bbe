"""A quantiser in a real I/O process: it works on what the worker found out, or refuses the start."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvtier.config import codecs
from kvtier.errors import ConfigError
from kvtier.layout import ChunkLayout
from kvtier.types import OpKind, OpStatus
from tests.codecs.test_quantise import Floats, chunk_of, floats
from tests.io_process.rig import Rig, file_tier, rig
from tests.packings import layout

FOUND = layout("amx", layers=1, tokens=32, heads=4, dim=32)
NBYTES = {0: FOUND.nbytes}
FIRST, LATER = FOUND.shape[1], 4 * FOUND.shape[1]  # end tokens


def tier(path: Path, codec: object = "int8") -> dict[str, object]:
    return {**file_tier(path), "codec": codecs.codec(codec, "codec")}


def written_and_read(io: Rig, end_token: int) -> tuple[Floats, Floats]:
    """Write slot 1 and read it back into slot 2: the values before and after."""
    chunk = chunk_of(FOUND)
    io.arena.slot(1)[: len(chunk)] = chunk
    write = io.one(OpKind.WRITE, 1, end_token=end_token)
    assert write.status is OpStatus.OK
    assert write.nbytes < FOUND.nbytes * 0.55 + 2 * 4096, (
        "a header page, and a payload in whole pages"
    )
    assert io.one(OpKind.READ, 1, slot=2).status is OpStatus.OK
    back = io.arena.slot(2)[: len(chunk)].copy()
    before, after = (np.stack(floats(FOUND, each)) for each in (chunk, back))
    return before, after


@pytest.fixture
def io(tmp_path: Path) -> Iterator[Rig]:
    with rig([tier(tmp_path)], group_nbytes=NBYTES, layouts={0: FOUND}) as io:
        yield io


def test_what_comes_back_is_near(io: Rig) -> None:
    before, after = written_and_read(io, LATER)
    assert not np.array_equal(before, after)
    assert np.linalg.norm(before - after) < 0.02 * np.linalg.norm(before)


def test_the_record_knows_whether_it_begins_the_sequence(io: Rig) -> None:
    before, after = written_and_read(io, FIRST)
    assert np.array_equal(before[:, :, :4], after[:, :, :4])
    assert not np.array_equal(before[:, :, 4:], after[:, :, 4:])


def test_no_layout_no_start(tmp_path: Path) -> None:
    why = "layers differ in how they fill their pages"
    known: dict[int, ChunkLayout | str] = {0: why}
    with (
        pytest.raises(ConfigError) as failure,
        rig([tier(tmp_path)], group_nbytes=NBYTES, layouts=known),
    ):
        pass
    assert "tier 'nvme': its codec cannot work on KV-cache group 0" in str(failure.value)
    assert why in str(failure.value)
    assert "use lossless" in str(failure.value)
    with rig(
        [tier(tmp_path, "lossless")], group_nbytes=NBYTES, layouts=known, kv_dtype="bf16"
    ) as io:
        chunk = np.frombuffer(chunk_of(FOUND).tobytes(), np.uint8)
        io.arena.slot(1)[: len(chunk)] = chunk
        assert io.one(OpKind.WRITE, 1).status is OpStatus.OK
        assert io.one(OpKind.READ, 1, slot=2).status is OpStatus.OK
        assert np.array_equal(io.arena.slot(2)[: len(chunk)], chunk)


def test_a_layout_of_another_chunk_is_no_layout(tmp_path: Path) -> None:
    other = msgspec.structs.replace(FOUND, dtype="fp32")
    with (
        pytest.raises(ConfigError, match="bytes"),
        rig([tier(tmp_path)], group_nbytes=NBYTES, layouts={0: other}),
    ):
        pass
