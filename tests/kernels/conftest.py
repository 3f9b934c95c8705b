from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from bench import simulate
from bench.core import variants
from kernels import cuda


@pytest.fixture
def simulated() -> Iterator[Callable[[str, str], ModuleType]]:
    """A GPU variant's module by its layer and name, run in the simulator until the test ends."""

    def load(layer: str, name: str) -> ModuleType:
        variant = variants.find(variants.discover(), layer, name)
        if reason := variants.unavailable(variant, "cpu", "bf16"):
            pytest.skip(reason)
        simulate.install(variant.backend)
        return variant.load()

    yield load
    cuda.simulate_with(None)
