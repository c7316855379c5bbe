"""The wrappers keep the contract, and do what they are for."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.errors import TierError
from kvtier.testing.tiers import FIRST, TierContract, pages
from kvtier.tier import Site, Tier
from kvtier.tiers.file import FileConfig, FileTier
from kvtier.tiers.wrappers import FaultyConfig, FaultyTier, SlowConfig, SlowTier
from kvtier.types import PAGE
from tests.io_process.rig import rewrite


class TestWrapped(TierContract):
    """The whole contract through both wrappers, idle."""

    @pytest.fixture(autouse=True)
    def _medium(self, tmp_path: Path) -> Iterator[None]:
        self.tiers: list[Tier] = []
        self.base = tmp_path / "kv"
        yield
        for tier in self.tiers:
            tier.close()

    def make(self, site: Site) -> Tier:
        inner = FileTier(FileConfig(path=str(self.base)), site, lock_timeout_s=0.1)
        self.tiers.append(FaultyTier(SlowTier(inner, SlowConfig()), FaultyConfig()))
        return self.tiers[-1]


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[FileTier]:
    tier = FileTier(FileConfig(path=str(tmp_path / "kv")), Site("kv"))
    tier.open(FIRST, "{}")
    yield tier
    tier.close()


def test_slow_waits_for_each_call_and_byte(inner: Tier) -> None:
    slept: list[float] = []
    tier = SlowTier(inner, SlowConfig(read_s=2, write_s=3, bytes_per_s=PAGE), sleep=slept.append)
    tier.write(b"k", [pages(2)])
    tier.read(b"k", [pages(1)])
    assert slept == [5, 3]


@pytest.mark.parametrize("operation", ["read", "write"])
def test_faulty_fails_one_way_only(inner: Tier, operation: str) -> None:
    config = (
        FaultyConfig(read_errno="EIO") if operation == "read" else FaultyConfig(write_errno="EIO")
    )
    tier = FaultyTier(inner, config)
    calls = {
        "read": lambda: tier.read(b"k", [pages(1)]),
        "write": lambda: tier.write(b"k", [pages(1)]),
    }
    with pytest.raises(TierError, match="injected EIO") as failure:
        calls.pop(operation)()
    assert isinstance(failure.value.__cause__, OSError)
    assert failure.value.__cause__.errno == errno.EIO
    next(iter(calls.values()))()


def test_faulty_follows_its_control_file(inner: Tier, tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    slept: list[float] = []
    versions: Iterator[dict[str, object]] = iter(
        [
            {"hang": False, "write_delay_s": 7},
            {"write_errno": "ENOSPC"},
        ]
    )

    def change(seconds: float) -> None:
        slept.append(seconds)
        if seconds == 0.02:
            rewrite(control, next(versions))

    tier = FaultyTier(inner, FaultyConfig(control=str(control)), sleep=change)
    tier.write(b"k", [pages(1)])  # no file: no faults
    rewrite(control, {"hang": True})
    slept.clear()
    tier.write(b"k", [pages(1)])
    assert slept == [0.02, 7]
    rewrite(control, next(versions))
    with pytest.raises(TierError, match="ENOSPC"):
        tier.write(b"k", [pages(1)])
    control.write_text("{")
    with pytest.raises(TierError, match="ENOSPC"):
        tier.write(b"k", [pages(1)])
    control.unlink()
    tier.write(b"k", [pages(1)])
