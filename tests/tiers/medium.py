"""A directory per test, and file tiers over it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.testing.tiers import FIRST
from kvtier.tier import Site
from kvtier.tiers.file import FileConfig, FileTier


class FileMedium:
    """Make file tiers over `base`, and close them after the test."""

    @pytest.fixture(autouse=True)
    def _medium(self, tmp_path: Path) -> Iterator[None]:
        self.tiers: list[FileTier] = []
        self.base = tmp_path / "kv"
        yield
        for tier in self.tiers:
            tier.close()

    def make(self, site: Site) -> FileTier:
        self.tiers.append(FileTier(FileConfig(path=str(self.base)), site, lock_timeout_s=0.1))
        return self.tiers[-1]

    def opened(self, namespace: str = FIRST, rank: int = 0) -> FileTier:
        tier = self.make(Site("contract", rank=rank, local_ranks=2))
        tier.open(namespace, f'{{"namespace": "{namespace}"}}')
        return tier
