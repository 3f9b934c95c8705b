import os

import pytest

from reference.models import MODELS
from tests.bench.trainer import runs
from tests.fake_gpu import FakeGpu


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """gpt2-tiny is a model of 300 tokens."""
    monkeypatch.setitem(MODELS, runs.SMALL.name, runs.SMALL)


@pytest.fixture(autouse=True)
def _as_before():
    """A run in this process sets a variable for later libraries and opens its device: others are to find neither."""
    variable = os.environ.get("OMP_NUM_THREADS")
    yield
    os.environ.pop("OMP_NUM_THREADS", None)
    if variable is not None:
        os.environ["OMP_NUM_THREADS"] = variable
    while FakeGpu.current:
        FakeGpu.current.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return runs.shards(tmp_path_factory.mktemp("data"))
