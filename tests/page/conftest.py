"""One browser for all tests of pages."""

from collections.abc import Iterator

import pytest

from tests.page.browser import Tab, browsing


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Iterator[Tab]:
    """A browser that has complained of nothing, and does not afterwards."""
    browser.forget()
    yield browser
    assert not browser.errors
