"""The best codec that fits the budget: who is chosen, when, and that anything decodes what was written."""

import numpy as np

from kvtier.codec import MARGIN, NO_FACTS, Codec
from kvtier.codecs.budget import BudgetCodec, BudgetConfig
from kvtier.config import Plugin
from kvtier.decoders import Decoders
from kvtier.testing.codecs import CodecContract, sample

NBYTES = 1_000_000


def budget(budget_ms: float = 10.0) -> BudgetCodec:
    among = (Plugin(kind="lz4"), Plugin(kind="zstd"))
    return BudgetCodec(BudgetConfig(budget_ms=budget_ms, among=among))


class TestBudgetCodec(CodecContract):
    def make(self) -> Codec:
        return budget()


def after(codec: BudgetCodec, waiting: int, **milliseconds: float) -> str:
    """Measure both codecs, then choose: lz4 keeps 0.9 of a chunk, zstd 0.6."""
    for shrunk, each in zip((0.9, 0.6), codec.among, strict=True):
        codec.measured(each, NBYTES, int(NBYTES * shrunk), milliseconds[each.name] / 1e3)
    return codec.chosen(NBYTES, waiting).name


def test_each_is_measured_first_while_nobody_waits() -> None:
    codec = budget()
    first = codec.chosen(NBYTES, 0)
    codec.measured(first, NBYTES, NBYTES, 1e-3)
    second = codec.chosen(NBYTES, 0)
    assert {first.name, second.name} == {"lz4", "zstd"}


def test_the_one_that_saves_most_is_chosen_while_nobody_waits() -> None:
    assert after(budget(), 0, lz4=1, zstd=8) == "zstd"


def test_the_fast_one_is_chosen_while_reads_wait() -> None:
    assert after(budget(), 1, lz4=1, zstd=8) == "lz4"
    assert after(budget(), 1, lz4=1, zstd=4) == "zstd"


def test_the_fastest_is_chosen_where_none_fits() -> None:
    assert after(budget(), 100, lz4=1, zstd=8) == "lz4"


def test_what_became_fast_again_is_found() -> None:
    codec = budget()
    assert after(codec, 0, lz4=1, zstd=20) == "lz4"
    chosen = []
    for _ in range(300):
        each = codec.chosen(NBYTES, 0)
        chosen.append(each.name)
        codec.measured(each, NBYTES, NBYTES // 2 if each.name == "zstd" else NBYTES, 1e-3)
    assert chosen[:60] == ["lz4"] * 60
    assert chosen[-10:] == ["zstd"] * 10


def test_records_have_the_id_of_the_chosen_one() -> None:
    codec, chunk = budget(), sample("floats", 100_000)
    chosen = codec.chosen(len(chunk), 0)
    out = np.empty(len(chunk) + MARGIN, np.uint8)
    by, n = codec.encode_by_one(np.zeros_like(chunk), out, NO_FACTS, 0)
    assert by is chosen
    assert codec.chosen(len(chunk), 0) is not chosen, "it was measured"
    payload, out = out[:n].copy(), np.ones_like(chunk)
    Decoders(*codec.among).of(chosen.id).decode(payload, out)
    assert not out.any()
