"""docs/compatibility.md claims nothing that no test says: every test that it names exists, and so does every sentence."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.pages import DOCS

TESTS = DOCS.parent / "tests"
CLAIMS = ("works", "off", "refused")


class Row(NamedTuple):
    mode: str
    v31: str
    v32: str
    v33: str
    tests: list[str]


def rows() -> list[Row]:
    """The rows of the tables of modes and models."""
    tables = (DOCS / "compatibility.md").read_text().partition("\n## ")[2]
    lines = [line for line in tables.splitlines() if line.startswith("|")]
    return [row(line) for line in lines if not re.match(r"\|---|.*\| 0.32 \|", line)]


def row(line: str) -> Row:
    mode, v31, v32, v33, tests = (cell.strip() for cell in line.strip("|").split("|"))
    return Row(mode, v31, v32, v33, re.findall(r"`(\w+/[^`]+)`", tests))


def sentences() -> list[str]:
    """What a table says that kvtier says."""
    said = [said for each in rows() for said in each[1:4] if "by vLLM" not in said]
    return sorted({sentence for each in said for sentence in re.findall(r'"([^"]+)"', each)})


@cache
def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_is_a_table() -> None:
    assert len(rows()) > 20


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.mode[:40])
def test_a_row_names_its_tests(row: Row) -> None:
    claimed = [said for said in row[1:4] if said.startswith(CLAIMS)]
    assert bool(row.tests) == bool(claimed), "what was run has a test, what was not has none"
    for said in row[1:4]:
        assert said.startswith((*CLAIMS, "not run")), said
    for test in row.tests:
        file, _, name = test.partition("::")
        assert (TESTS / file).is_file(), file
        if name:
            assert name.partition("[")[0] in functions(TESTS / file), test


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.mode[:40])
def test_other_releases_run_only_what_test_compat_runs(row: Row) -> None:
    if row.v31.startswith(CLAIMS) or row.v33.startswith(CLAIMS):
        files = [TESTS / test.partition("::")[0] for test in row.tests]
        assert any("pytest.mark.core" in file.read_text() for file in files)


@pytest.mark.parametrize("sentence", sentences())
def test_a_sentence_of_the_page_is_one_of_the_code(sentence: str) -> None:
    code = DOCS.parent / "connectors" / "vllm"
    assert any(sentence in file.read_text() for file in code.glob("*.py"))
