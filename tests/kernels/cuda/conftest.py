import pytest

from kernels import cuda


@pytest.fixture
def launched(monkeypatch):
    """The launches of a test, written down instead of run."""
    found: list[cuda.Launch] = []
    monkeypatch.setattr(cuda, "_simulator", found.append)
    return found


def kernel(source, entry, **constants):
    """A kernel of a file that does not lie beside the test."""
    made = cuda.Kernel(source.name, entry, **constants)
    made.source = source
    return made
