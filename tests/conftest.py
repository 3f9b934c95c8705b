"""For all tests: runs leave no page behind unless a test wants one (it takes seconds to build); a browser for pages;
time for what is slow; and no looking for garbage in what all tests are made of."""

import gc
import os

import pytest

SLOW_S = 1200  # of one test: of a minute where nothing else is at work a busy machine may make ten

os.environ.setdefault("LAYERBENCH_REPORT", "0")


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than cores, for tests wait a seventh of their time (for compilers, for time limits)."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The limit of pyproject.toml is for tests that are not slow; some have one of their own."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_S))


def pytest_collection_finish() -> None:
    """Ten thousand tests and all that they import stay to the end: looking through them again and again for garbage is
    a twentieth of the time. Of this process alone: those that tests start are forks of servers of their own."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """At the end it is all let go: libraries tell of what is not."""
    gc.unfreeze()


@pytest.fixture
def browser():
    from tests.browser import MISSING, open_browser

    if MISSING:
        pytest.skip(MISSING)
    driver = open_browser()
    yield driver
    driver.quit()
