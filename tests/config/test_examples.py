"""Every file in `examples/` is a configuration that works."""

from pathlib import Path

import pytest

from kvtier.config import load

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def test_there_are_some() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_it_loads_and_fits_on_a_screen(file: Path) -> None:
    assert load(file).tiers[0].kind == "dram"
    assert len(file.read_text().splitlines()) <= 50
