"""The fixtures of tests/engine, and the mark that keeps these tests to `make test-modes`."""

from pathlib import Path

import pytest

from tests.engine.conftest import after_engines, engine, llama, serve

__all__ = ["after_engines", "engine", "llama", "serve"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and "engine" not in item.keywords:
            item.add_marker(pytest.mark.modes)
