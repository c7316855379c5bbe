"""The record format: what was packed comes back, and nothing else does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.errors import CorruptBlock
from kvtier.io_process import record
from kvtier.io_process.record import Header, Identity
from kvtier.tier import Bytes
from kvtier.types import PAGE

NAMESPACE = record.namespace_of("{}")
PAYLOAD = np.random.default_rng(0).integers(0, 256, 2 * PAGE, dtype=np.uint8)
HEADER = Header(
    codec=2,
    namespace=NAMESPACE,
    rank=3,
    group=1,
    end_token=4096,
    raw_nbytes=20000,
    stored_nbytes=2 * PAGE - 100,
    key=b"k" * 36,
    parent=b"p" * 36,
    checksum=record.checksum(PAYLOAD),
)
WANT = Identity(NAMESPACE, 3, 1, b"k" * 36, 20000)


def packed(header: Header = HEADER) -> Bytes:
    page = np.ones(PAGE, np.uint8)
    record.pack(header, page)
    return page


def verify(page: Bytes, nbytes: int, payload: Bytes) -> None:
    header = record.unpack(page)
    record.check_identity(header, WANT)
    record.check_payload(header, nbytes, payload)


def test_comes_back() -> None:
    assert record.unpack(packed()) == HEADER
    verify(packed(), 3 * PAGE, PAYLOAD)


@given(
    key=st.binary(min_size=1, max_size=64),
    parent=st.binary(max_size=64),
    numbers=st.tuples(*[st.integers(0, 2**32 - 1)] * 6),
)
def test_any_header_comes_back(key: bytes, parent: bytes, numbers: tuple[int, ...]) -> None:
    rank, group, end_token, raw, stored, shard = numbers
    checksum = HEADER.checksum
    header = Header(2, NAMESPACE, rank, group, end_token, raw, stored, key, parent, checksum, shard)
    assert record.unpack(packed(header)) == header


def test_every_flipped_bit_of_the_header_is_found() -> None:
    page = packed()
    for i in range(PAGE):
        for bit in (1, 0x80):
            page[i] ^= bit
            with pytest.raises(CorruptBlock):
                record.unpack(page)
            page[i] ^= bit
    assert record.unpack(page) == HEADER


def test_flipped_bytes_of_payload_and_padding_are_found() -> None:
    page, payload = packed(), PAYLOAD.copy()
    for i in [0, 1, 31, 4095, 4096, *range(0, 2 * PAGE, 97), 2 * PAGE - 100, 2 * PAGE - 1]:
        payload[i] ^= 0x10
        with pytest.raises(CorruptBlock, match="payload checksum"):
            verify(page, 3 * PAGE, payload)
        payload[i] ^= 0x10


@pytest.mark.parametrize("nbytes", [1, PAGE, 2 * PAGE, 3 * PAGE - 1, 3 * PAGE + 1, 4 * PAGE])
def test_another_length_is_found(nbytes: int) -> None:
    with pytest.raises(CorruptBlock, match="expected 12288"):
        verify(packed(), nbytes, PAYLOAD)


@pytest.mark.parametrize("field", Identity._fields)
def test_another_record_is_found(field: str) -> None:
    other = {
        "namespace": record.namespace_of("other"),
        "rank": 4,
        "group": 2,
        "key": b"x" * 36,
        "raw_nbytes": 20001,
        "shard": 1,
    }[field]
    changed = HEADER._replace(**{field: other})  # type: ignore[arg-type] # of the field's type
    with pytest.raises(CorruptBlock, match=field):
        verify(packed(changed), 3 * PAGE, PAYLOAD)


def test_another_version_is_named() -> None:
    page = packed()
    page[8] = 9
    with pytest.raises(CorruptBlock, match="format 9"):
        record.unpack(page)


@pytest.mark.parametrize("seed", range(50))
def test_noise_is_no_record(seed: int) -> None:
    with pytest.raises(CorruptBlock):
        record.unpack(np.random.default_rng(seed).integers(0, 256, PAGE, dtype=np.uint8))


@pytest.mark.parametrize("nbytes", [0, 100, PAGE - 1, PAGE + 1])
def test_half_a_page_is_no_record(nbytes: int) -> None:
    with pytest.raises(CorruptBlock):
        record.unpack(np.zeros(nbytes, np.uint8))


def test_keys_have_a_length() -> None:
    for key in (b"", b"k" * 65):
        with pytest.raises(ValueError, match="1 to 64"):
            packed(HEADER._replace(key=key))


def test_namespaces_are_names_and_differ() -> None:
    assert record.namespace_of("a") != record.namespace_of("b")
    assert len(NAMESPACE) == 32
    assert set(NAMESPACE) <= set("0123456789abcdef")


def test_a_golden_header_reads_for_ever() -> None:
    """Format 2 on disk is a promise: a change of layout needs another format."""
    assert (
        record.checksum(packed(HEADER._replace(shard=7))).hex()
        == "4349dbbcddd49e02aec0e352cef8aea8"
    )


def test_pieces_have_the_checksum_of_the_whole() -> None:
    assert record.checksum(PAYLOAD[:100], PAYLOAD[100:]) == HEADER.checksum
