import os

import pytest
import torch

from reference.models import MODELS
from tests.bench.trainer import runs
from tests.fake_gpu import FakeGpu


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """gpt2-tiny is a model of 300 tokens."""
    monkeypatch.setitem(MODELS, runs.SMALL.name, runs.SMALL)


@pytest.fixture(autouse=True)
def _as_before():
    """A run in this process sets its threads and opens its device; other tests are to find neither."""
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    yield
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS", None)
    if variable is not None:
        os.environ["OMP_NUM_THREADS"] = variable
    while FakeGpu.current:
        FakeGpu.current.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return runs.shards(tmp_path_factory.mktemp("data"))
