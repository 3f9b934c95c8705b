"""For all tests: runs leave no page behind unless a test wants one (it takes seconds to build); a browser for pages."""

import os

import pytest

os.environ.setdefault("LAYERBENCH_REPORT", "0")


@pytest.fixture
def browser():
    from tests.browser import MISSING, open_browser

    if MISSING:
        pytest.skip(MISSING)
    driver = open_browser()
    yield driver
    driver.quit()
