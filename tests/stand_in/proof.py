"""The project's own check of a variant that calls a library, over a stand-in, in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from bench import simulate
from bench.core import variants
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case
from bench.trial import checks, truth
from bench.trial.checks import Verdict
from kernels import cuda
from tests.stand_in import cublaslt, cudnn

SHIFT, ROUND = 64, 256  # the workspace begins at as little as the harness promises, not at what a library wants
VARIANTS = variants.discover()


@contextmanager
def own_kernels_simulated() -> Iterator[None]:
    """What a variant launches beside the library runs in the simulator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    simulate.install("cuda")
    try:
        yield
    finally:
        cuda.simulate_with(None)
        torch.set_num_threads(threads)


def called(module: ModuleType, case: Case, stand_in: cublaslt.StandIn | cudnn.StandIn) -> Arena:
    """One call of a case, whose memory alone the stand-in may touch. Raises what the call raises."""
    size = workspace_of(module, case)
    arena = Arena(case, "cpu", size and size + ROUND)
    arena.load(truth.drawn(case, truth.CPU))
    arena.reset()
    kwargs = arena.kwargs()
    stand_in.memory = [(f.view.data_ptr(), f.view.data_ptr() + f.view.nbytes) for f in arena.fences.values()]
    if isinstance(workspace := kwargs.get("workspace"), torch.Tensor) and size:
        first = (SHIFT - workspace.data_ptr()) % ROUND
        kwargs["workspace"] = workspace = workspace[first : first + size]
        stand_in.memory[-1] = workspace.data_ptr(), workspace.data_ptr() + size
    stand_in.kept.append(arena)
    try:
        assert getattr(module, case.phase)(*arena.args(), **kwargs) is None
    finally:
        stand_in.memory = []
    return arena


def proved(module: ModuleType, case: Case, stand_in: cublaslt.StandIn | cudnn.StandIn) -> Verdict:
    """What the project's check says of one call of a case."""
    arena = called(module, case, stand_in)
    return checks.inspect(arena, truth.brief(case, variants.find(VARIANTS, case.layer, "torch.eager")))


def load(layer: str, name: str) -> ModuleType:
    return variants.find(VARIANTS, layer, name).load()
