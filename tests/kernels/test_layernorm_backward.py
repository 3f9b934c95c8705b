"""LayerNorm's and RMSNorm's backward where a block takes one row after another, of which the next is on its way: no
ragged shape has as many rows as that takes, so blocks are made few."""

import pytest
import torch

from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, draw, one, truth_of

FEW = {"cuda.shared": ("SMS", 1), "triton.rows": ("PROGRAMS", 2)}
ROWS = 77  # of blocks of 2 to 32 rows, the last ones' incomplete
# Bytes of an access: 16, or 2 (no copy is as small); the last: too long for two at once in Triton.
WIDTHS = {
    ("layernorm", "cuda.shared"): (40, 37, 1601, 1608, 9000),
    ("layernorm", "triton.rows"): (40, 37, 1601, 1608, 9000),
    ("rmsnorm", "cuda.shared"): (40, 37, 1608),
    ("rmsnorm", "triton.rows"): (37, 9000),
}


@pytest.mark.parametrize(("layer", "name", "C"), [(*which, C) for which, some in WIDTHS.items() for C in some])
def test_rows_after_rows(layer, name, C, monkeypatch, simulated):
    module = simulated(layer, name)
    constant, few = FEW[name]
    home = module if hasattr(module, constant) else getattr(module, f"{layer}_rows")
    monkeypatch.setattr(home, constant, few)
    shape = dict(B=1, T=ROWS, C=C, eps=1e-5, dresidual=True, dtype="bf16", accumulate=True)
    case = Case(layer, "backward", shape, "many rows", 0)
    values = draw(case)
    arena = Arena(case, "cpu", workspace_of(module, case))
    arena.load(values)
    arena.reset()
    arena.call(module.backward)
    truth = truth_of(case, values)
    for output, got in arena.outputs.items():
        torch.testing.assert_close(one(got).double(), truth[output], rtol=2**-7, atol=2**-5)
