"""The norm where a block takes one chunk after another, of several tensors, and where squares do not fit fp32: no
ragged shape has as many chunks as that takes, so blocks are made few."""

import pytest
import torch

from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, one

FEW = {"cuda.shared": "MOST_BLOCKS", "triton.chunks": "MOST_PROGRAMS"}
SIZES = (40_000, 3, 16_384, 17, 9_000)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-25])
def test_chunks_after_chunks(name, scale, monkeypatch, simulated):
    module = simulated("global_norm", name)
    monkeypatch.setattr(module, FEW[name], 3)
    shape = dict(tensors=[(n,) for n in SIZES], dtype="bf16")
    assert module.workspace(shape, "forward") == 3 * 8
    case = Case("global_norm", "forward", shape, "many chunks", 0)
    generator = torch.Generator().manual_seed(0)
    grads = [(torch.randn(n, generator=generator) * scale / 300).bfloat16() for n in SIZES]
    arena = Arena(case, "cpu", workspace_of(module, case))
    arena.load({"grads": grads})
    arena.reset()
    arena.call(module.forward)
    truth = torch.linalg.vector_norm(torch.cat([g.double() for g in grads]))
    torch.testing.assert_close(one(arena.outputs["norm"]).double().reshape(()), truth, rtol=3e-7, atol=0)
