"""vLLM shakes hands once until 0.32, and from 0.33 on again at each wake-up."""

from typing import Any

import pytest

from tests.compat import contract

halves: Any = contract.load("tests.connectors.halves")


@pytest.fixture
def side() -> Any:
    return halves.scheduling()


def test_the_brain_of_the_start_outlives_a_wake_up(side: Any) -> None:
    brain = side.brain
    side.meet([halves.hello(8)])
    assert side.brain is brain
    assert not side.guard.broken


def test_ranks_that_are_not_those_of_the_start_turn_kvtier_off(side: Any) -> None:
    side.meet([halves.hello(7)])
    assert "not those of the start" in side.guard.broken
