"""Matmul's persistent programs where each takes several tiles, which only large matrices make them: on a GPU of one
multiprocessor, with every configuration of the tables."""

import pytest
import torch

from bench import simulate
from bench.core import variants
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, draw, one, truth_of
from bench.gpu.launches import tables_of
from kernels import cuda

VARIANTS = variants.discover()
TABLES = {"forward": ("FORWARD", "FORWARD_GELU"), "backward": ("DX", "DX_GELU")}


@pytest.mark.slow  # a minute each in the simulator
@pytest.mark.parametrize("phase", TABLES)
@pytest.mark.parametrize("gelu", [False, True])
def test_tiles_after_tiles(phase, gelu, monkeypatch):
    variant = variants.find(VARIANTS, "matmul", "triton.persistent")
    if reason := variants.unavailable(variant, "cpu", "bf16"):
        pytest.skip(reason)
    simulate.install("triton")
    module = variant.load()
    monkeypatch.setattr(module, "multiprocessors", lambda: 1)
    sizes = dict(M=300, N=264, K=136) if phase == "forward" else dict(M=300, N=136, K=264)
    shape = dict(sizes, epilogue="bias_gelu" if gelu else "bias", dgelu=gelu, dtype="bf16", accumulate=False)
    case = Case("matmul", phase, shape, "several tiles a program", 0)
    values = draw(case)
    truth = truth_of(case, values)
    table = tables_of(module)[TABLES[phase][gelu]]
    for config in table.half[90]:
        monkeypatch.setattr(table, "trying", config)
        arena = Arena(case, "cpu", workspace_of(module, case))
        arena.load(values)
        arena.reset()
        try:
            arena.call(getattr(module, phase))
        finally:
            cuda.simulate_with(None)
        for output, got in arena.outputs.items():
            if got is not None:
                torch.testing.assert_close(one(got).double(), truth[output], rtol=2**-7, atol=2**-4, msg=output)
