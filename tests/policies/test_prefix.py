import pytest

from kvtier.config import Plugin
from kvtier.policy import EvictionPolicy
from kvtier.registry import EVICTION, build
from kvtier.testing.policies import FixedFacts, PolicyContract


@pytest.fixture(params=[name for name in EVICTION if name != "lru"], autouse=True)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestEveryPolicy(PolicyContract):
    @pytest.fixture(autouse=True)
    def choose(self, name: str) -> None:
        self.name = name

    def make(self) -> EvictionPolicy:
        return build("eviction", Plugin(kind=self.name), FixedFacts())
