"""Records and payloads, per codec: a hostile one is a miss, and nothing but its slot is written."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvtier.codec import NO_FACTS, Codec
from kvtier.codecs.raw import RawCodec
from kvtier.decoders import CODEC_NAMES, Decoders
from kvtier.errors import CorruptBlock, TierError
from kvtier.io_process import record
from kvtier.io_process.buffers import ArenaView
from kvtier.io_process.record import Header, padded
from kvtier.io_process.records import Records
from kvtier.io_process.wire import IoSetup
from kvtier.tier import Site
from kvtier.tiers import fsck
from kvtier.tiers.file import FileConfig, FileTier
from kvtier.types import PAGE, OpKind, OpStatus, TierOp
from tests.codecs.named import named
from tests.fuzz.scale import examples
from tests.io_process.rig import MANIFEST, Bytes, key_of, pattern

NBYTES, SLOT, SLOTS = 20000, 20480, 3
KEY = key_of(7)
CODECS = ["raw", "lz4", "zstd", "lossless", "planes+lz4", "zstd_dict"]
NESTED = (b"\6\0" + b"\1" + b"\6\0" + (20000).to_bytes(4, "little")) * 1500
PAYLOADS = st.binary(max_size=64) | st.builds(
    lambda head, tail: bytes(head) + tail,
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 16, 0x20, 0x4E, 0xFF]), max_size=24),
    st.binary(max_size=40),
)


class Shop:
    """One tier with one record, and the memory that it is read into."""

    def __init__(self, path: Path, codec: Codec) -> None:
        self.path = path
        self.fd = os.memfd_create("arena")
        os.truncate(self.fd, SLOT * SLOTS)
        self.slots = ArenaView(self.fd, SLOT * SLOTS, SLOT)
        setup = IoSetup(
            arena_nbytes=SLOT * SLOTS, slot_nbytes=SLOT, group_nbytes={0: NBYTES}, tiers=[], kv_dtype="bf16"
        )  # fmt: skip
        site = Site("fuzz")
        self.tier = FileTier(FileConfig(path=str(path)), site)
        self.records = Records(self.tier, codec, site, self.slots, setup)
        self.records.change(TierOp(op=1, kind=OpKind.OPEN, tier=1, text=MANIFEST), 0)
        self.chunk = pattern(7, NBYTES)

    def serve(self, kind: OpKind, slot: int) -> OpStatus:
        return self.records.serve(TierOp(op=1, kind=kind, tier=1, key=KEY, slot=slot), 0).status

    def write(self) -> Path:
        self.slots.view(0)[:NBYTES] = self.chunk
        assert self.serve(OpKind.WRITE, 0) is OpStatus.OK
        return next(self.path.rglob(f"{KEY.hex()}.kvt"))

    def read(self) -> Bytes | None:
        """Read the record into slot 1; None for a miss. The slots beside it stay as they are."""
        around = [self.slots.view(i) for i in (0, 2)]
        for view in around:
            view[:] = 0xA5
        self.slots.view(1)[:] = 0
        try:
            status = self.serve(OpKind.READ, 1)
        except TierError:
            status = OpStatus.ERROR
        assert all((view == 0xA5).all() for view in around)
        if status is OpStatus.OK:
            return self.slots.view(1)[:NBYTES].copy()
        assert status in (OpStatus.MISSING, OpStatus.CORRUPT)
        return None

    def close(self) -> None:
        self.records.close()
        os.close(self.fd)


@pytest.fixture(scope="module", params=CODECS)
def shop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    codec = named(*request.param.split("+")) if request.param != "raw" else RawCodec()
    made = Shop(tmp_path_factory.mktemp("records"), codec)
    yield made
    made.close()


@given(
    at=st.integers(0, 30000),
    new=st.binary(min_size=1, max_size=9),
    nbytes=st.none() | st.integers(0, 40000) | st.just(1 << 40),
)
@example(at=10, new=b"\xff\xff", nbytes=None)
@examples(60)
def test_bytes_of_a_record(shop: Shop, at: int, new: bytes, nbytes: int | None) -> None:
    path = shop.write()
    before = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(at % len(before))
        file.write(new)
    if nbytes is not None:
        os.truncate(path, nbytes)
    with path.open("rb") as file:
        same = path.stat().st_size == len(before) and file.read() == before
    verdict = fsck.verify(next(at for at in fsck.places(shop.path) if at.path == path))
    assert verdict is not None
    assert (verdict.fault == "") == same
    read = shop.read()
    assert (read is not None) == same
    assert read is None or np.array_equal(read, shop.chunk)
    path.unlink(missing_ok=True)


NUMBERS = st.sampled_from([0, 1, 4096, NBYTES, NBYTES + 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])


@given(
    codec=st.sampled_from([*CODEC_NAMES, 9, 999, 65535]),
    numbers=st.tuples(*(st.sampled_from([0, 1, 2**32 - 1]) for _ in range(2)), *([NUMBERS] * 3)),
    right=st.booleans(),
    payload=PAYLOADS,
)
@example(codec=6, numbers=(0, 0, 0, NBYTES, 0), right=True, payload=NESTED[:16000])
@example(codec=3, numbers=(0, 0, 0, NBYTES, 0), right=True, payload=b"\1" + NESTED[:16000])
@examples(60)
def test_a_forged_record(
    shop: Shop, codec: int, numbers: tuple[int, ...], right: bool, payload: bytes
) -> None:
    """Under right checksums: whatever it says of itself, it ends in a miss or in a whole chunk."""
    path = shop.write()
    old = record.unpack(np.frombuffer(path.read_bytes()[:PAGE], np.uint8).copy())
    body = np.zeros(padded(len(payload)), np.uint8)
    body[: len(payload)] = np.frombuffer(payload, np.uint8)
    rank, group, end, raw, stored = numbers
    if right:
        rank, group, raw, stored = 0, 0, NBYTES, len(payload)
    header = Header(
        codec, old.namespace, rank, group, end, raw, stored, KEY, b"", record.checksum(body)
    )
    page = np.zeros(PAGE, np.uint8)
    record.pack(header, page)
    path.write_bytes(page.tobytes() + body.tobytes())
    for place in fsck.places(shop.path):
        fsck.verify(place)
    shop.read()
    path.unlink(missing_ok=True)


@given(
    codec=st.sampled_from(sorted(CODEC_NAMES)),
    payload=PAYLOADS,
    nbytes=st.sampled_from([1, 64, 4096]),
)
@example(codec=6, payload=NESTED, nbytes=4096)
@example(codec=3, payload=b"\1" + NESTED, nbytes=4096)
@examples(250)
def test_a_payload(codec: int, payload: bytes, nbytes: int) -> None:
    out = np.full(nbytes + 16, 0xA5, np.uint8)
    with suppress(CorruptBlock):
        Decoders().of(codec).decode(np.frombuffer(payload, np.uint8), out[:nbytes], NO_FACTS)
    assert (out[nbytes:] == 0xA5).all()
