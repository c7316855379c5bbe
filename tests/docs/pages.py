"""Reads the fenced blocks of a page of `docs/`, so that tests can run them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    """List the blocks of one language, in order."""
    return [text for lang, text in _FENCE.findall((DOCS / page).read_text()) if lang == language]
