"""Fixtures for every test."""

import os

import pytest
from hypothesis import settings

from tests.engine import scenarios
from tests.engine.lanes import DEFAULT, LANES

# The same examples in every run, and no limit on their time: the machine may be busy.
settings.register_profile("kvtier", deadline=None, derandomize=True)
settings.load_profile("kvtier")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run of the engine tests choose how vLLM runs."""
    parser.addoption("--lane", choices=LANES, default=DEFAULT, help="how vLLM runs its engines")


def pytest_configure(config: pytest.Config) -> None:
    """Have shorter answers, before a test asks how long they are, where the interpreter runs every step."""
    if LANES[config.getoption("--lane")].v2:
        scenarios.TOKENS = scenarios.TOKENS_INTERPRETED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if os.path.exists("/dev/nvidiactl"):
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
