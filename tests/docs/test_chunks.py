"""The page of chunks shows what the rule makes of known models."""

from tests.docs import chunks


def test_the_table_is_what_the_rule_makes_of_it() -> None:
    page = chunks.PAGE.read_text()
    assert page == chunks.render(page), "run: python -m tests.docs.chunks"
