import pytest

from reference.models import MODELS
from tests.bench.trainer import runs
from tests.fake_gpu import FakeGpu


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """gpt2-tiny is a model of 300 tokens."""
    monkeypatch.setitem(MODELS, runs.SMALL.name, runs.SMALL)


@pytest.fixture(autouse=True)
def _closed():
    """A run in this process opens its device: others are not to find it."""
    yield
    while FakeGpu.current:
        FakeGpu.current.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return runs.shards(tmp_path_factory.mktemp("data"))
