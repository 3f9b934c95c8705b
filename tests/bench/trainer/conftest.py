import pytest

from reference.models import MODELS
from tests.bench.trainer import runs


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """gpt2-tiny is a model of 300 tokens."""
    monkeypatch.setitem(MODELS, runs.SMALL.name, runs.SMALL)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return runs.shards(tmp_path_factory.mktemp("data"))
