"""The sort of embedding's backward where one block does not hold all tokens, which no ragged shape reaches."""

import torch

from bench import simulate
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, draw, one, truth_of
from kernels import cuda
from kernels.cuda.embedding import shared


def test_backward_sorts_tokens_over_several_blocks():
    shape = {"B": 2, "T": 2100, "C": 8, "V": 700, "VP": 704, "dtype": "fp32", "accumulate": False}
    case = Case("embedding", "backward", shape, "many tokens", 0)
    values = draw(case)
    arena = Arena(case, "cpu", workspace_of(shared, case))
    arena.load(values)
    arena.reset()
    simulate.install("cuda")
    try:
        arena.call(shared.backward)
    finally:
        cuda.simulate_with(None)
    truth = truth_of(case, values)
    for name, got in arena.outputs.items():
        torch.testing.assert_close(one(got).double(), truth[name], rtol=1e-5, atol=1e-5)
