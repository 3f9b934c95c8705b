"""Kernels under pytest-benchmark: the timing core of `bench.layer` measures; the plugin stores, prints and compares.

    pytest tests/benchmarks --benchmark-only --benchmark-autosave
    pytest tests/benchmarks --benchmark-only --benchmark-compare -k layernorm --benchmark-columns=min,median,iqr,rounds

The variants of a layer race as they always do: in processes of their own, in turns, with an A/A control. What the
plugin then times is a replay: a clock that only moves by the samples that are played back to it. Without
--benchmark-only nothing is measured.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CASES = (("gelu", "forward"), ("layernorm", "forward"), ("layernorm", "backward"), ("softmax", "forward"))


class Replay:
    """The plugin's clock. It ticks a nanosecond a reading, because the plugin measures how finely a clock ticks."""

    __name__ = "bench.trial.race"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-9
        return self.now


CLOCK = Replay()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = []
    if metafunc.config.getoption("benchmark_only"):  # looking for variants takes a moment
        found = [(*case, name) for case in CASES for name in names(*case)]
    metafunc.parametrize(("layer", "phase", "variant"), found)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.benchmark(timer=CLOCK, disable_gc=True))
            if not config.getoption("benchmark_only"):
                item.add_marker(pytest.mark.skip(reason="measures, with --benchmark-only alone"))


@pytest.fixture(scope="session")
def race() -> Iterator[Callable[[str, str], Any]]:
    """race(layer, phase): the timing of all its variants on a tiny shape, raced once."""
    from bench.core.case import Case
    from bench.core.variants import discover
    from bench.trial import race as timing
    from bench.trial.judge import Judge
    from bench.trial.room import Setting
    from reference import contract
    from reference.models import MODELS

    setting = Setting(threads=1)  # so little work on many threads would time their waking up
    with Judge() as judge:

        @functools.cache
        def raced(layer: str, phase: str) -> timing.Timing:
            module = contract.load(layer)
            name, call = next(iter(MODELS["gpt2-tiny"].shapes(layer, 4, 64).items()))
            case = Case(layer, phase, contract.overwriting(module, phase, call.shape, "fp32"), name)
            variants = [v for v in discover() if v.layer == layer and v.name in names(layer, phase)]
            variants.sort(key=lambda v: v.name != "torch.eager")  # the first one is the baseline
            return timing.race(case, variants, variants[0], judge, setting, timing.Effort(3.0, caches=("warm",)))

        yield raced


@pytest.fixture
def replay(benchmark: Any) -> Callable[[list[float]], None]:
    """Play seconds back to the plugin, as if it had measured them."""

    def play(seconds: list[float]) -> None:
        left = iter(seconds)

        def step() -> None:
            CLOCK.now += next(left)

        benchmark.pedantic(step, rounds=len(seconds), iterations=1)

    return play


def names(layer: str, phase: str) -> list[str]:
    """The variants that run here; torch.compile takes a minute to get ready for some microseconds."""
    from bench.core.variants import discover, simulated, unavailable

    return [
        v.name
        for v in discover()
        if v.layer == layer and v.has(phase) and v.name != "torch.compile"
        if not simulated(v, "cpu") and not unavailable(v, "cpu", "fp32")
    ]
