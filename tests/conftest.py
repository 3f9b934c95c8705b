"""For all tests: runs leave no page behind unless a test wants one (it takes seconds to build); a browser for pages;
time for what is slow; threads as they were; and no looking for garbage in what all tests are made of."""

import gc
import os

import pytest

WORKER_BYTES = 3 << 30
SLOW_S = 1200  # of one test: of a minute where nothing else is at work a busy machine may make ten

os.environ.setdefault("LAYERBENCH_REPORT", "0")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than cores, for tests wait a seventh of their time (for compilers, for time limits); fewer
    where memory is short, for each worker holds torch, and starts processes that do."""
    from bench.machine import facts

    have = facts.available_bytes()
    return min(facts.usable_cores() + 1, max(1, have // WORKER_BYTES) if have else 4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The limit of pyproject.toml is for tests that are not slow; some have one of their own."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_S))


def pytest_collection_finish() -> None:
    """Ten thousand tests and all that they import stay to the end: looking through them again and again for garbage is
    a twentieth of the time, and what is old is seldom looked through. (It does not stay frozen: what is frozen is
    counted in a room, and some of it is let go meanwhile.)"""
    gc.collect()
    gc.freeze()
    gc.unfreeze()  # into the oldest generation


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """No test inherits threads from another, or from a fixture of many."""
    from tests.commands import threads_as_they_were  # here: the process that hands out tests needs no torch

    with threads_as_they_were():
        return (yield)


@pytest.fixture
def browser():
    from tests.browser import MISSING, open_browser

    if MISSING:
        pytest.skip(MISSING)
    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture
def guarded(monkeypatch):
    """This process guarded (bench/core/deeds.py) for one test; monkeypatch puts back what was there."""
    import torch

    from bench.core import deeds, replaced

    monkeypatch.setattr(replaced, "REPLACED", tuple)
    setters = tuple(n for n in dir(torch._C) if n.startswith("_set_"))
    for module, names in [*deeds.PLACES.items(), (torch._C, setters)]:
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name))
    for owner, name in deeds.OPENERS:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for _, _, prop in deeds._properties():
        monkeypatch.setattr(prop, "setter", prop.setter)
    deeds.guard()
