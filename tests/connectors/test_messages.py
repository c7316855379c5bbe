"""What ranks say is joined: a chunk that failed on any of them has failed."""

import pytest

pytest.importorskip("vllm")

from kvtier.connectors.vllm.messages import KVTierWorkerMetadata


def test_what_failed_on_any_rank_has_failed() -> None:
    zero = KVTierWorkerMetadata(failed={1: {0}, 2: {5}})
    one = KVTierWorkerMetadata(failed={1: {2}, 3: {1}})
    for first, second in ((zero, one), (one, zero)):
        assert first.aggregate(second).failed == {1: {0, 2}, 2: {5}, 3: {1}}


def test_one_rank_that_is_off_is_enough() -> None:
    well, off = KVTierWorkerMetadata(), KVTierWorkerMetadata(broken="why")
    assert well.aggregate(off).broken == off.aggregate(well).broken == "why"
