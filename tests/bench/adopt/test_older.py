"""Kernels that want block pointers, or functions that were in tl.math, run with a Triton that has them no more."""

import runpy
from pathlib import Path

import pytest
import torch

from bench import simulate
from bench.adopt import older
from bench.adopt.reader import adopt
from bench.core.variants import Variant, package_of
from bench.trial.source import foreign
from kernels import cuda

SOFTMAX = """
import triton
import triton.language as tl


@triton.jit
def rows(out, x, R, S, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.make_block_ptr(base=x, shape=(R, S), strides=(S, 1), offsets=(row, 0), block_shape=(1, BLOCK), order=(1, 0))
    top = -float("inf")
    for i in range(0, S, BLOCK):
        inside = i + tl.arange(0, BLOCK)[None, :] < S
        top = tl.maximum(top, tl.max(tl.where(inside, tl.load(at, boundary_check=(0, 1)), -float("inf"))))
        at = tl.advance(at, (0, BLOCK))
    total = 0.0
    for i in range(0, S, BLOCK):
        line = tl.make_block_ptr(x + row * S, (S,), (1,), (i,), (BLOCK,), (0,))
        inside = i + tl.arange(0, BLOCK) < S
        total += tl.sum(tl.where(inside, tl.math.pow(2.718281828, tl.load(line, boundary_check=[0]) - top), 0.0))
    for i in range(0, S, BLOCK):
        place = tl.make_block_ptr(x, (R, S), (S, 1), (row, i), (1, BLOCK), (1, 0))
        to = tl.make_block_ptr(out, (R, S), (S, 1), (row, i), (1, BLOCK), (1, 0))
        tl.store(to, tl.exp(tl.load(place, boundary_check=(1,)) - top) / total, boundary_check=(0, 1))


def softmax(x):
    R, S = x.shape
    out = torch.empty_like(x)
    rows[(R,)](out, x, R, S, BLOCK=32)
    return out
"""


@pytest.mark.skipif(bool(simulate.unavailable("triton", ())), reason="the simulator is not there")
@pytest.mark.parametrize("checked", [True, False])
def test_a_kernel_of_an_older_triton_runs_as_it_is(tmp_path, checked):
    source = tmp_path / "rows.py"
    source.write_text(SOFTMAX if checked else SOFTMAX.replace(", boundary_check=(0, 1))\n\n\ndef", ")\n\n\ndef"))
    written, decide, _ = adopt(source, "softmax", None, "older_rows", tmp_path / "into", tries=False)
    text = Path(written[0]).read_text()
    assert (
        older.LANGUAGE in text and "tl.math.pow(2.718281828" in text and [d for d in decide if "causal" not in d] == []
    )
    variant = Variant("softmax", "triton", "older_rows", Path(written[0]), "Rows.", frozenset({"forward"}))
    assert foreign(variant) == []
    simulate.install("triton")
    x, out = torch.randn(3, 77), torch.zeros(3, 77)
    try:
        forward = runpy.run_path(str(written[0]), run_name=f"{package_of(Path(written[0]).parent)}.rows")["forward"]
        if checked:
            forward(x, False, out=out)
            assert torch.allclose(out, x.softmax(-1), atol=1e-6)
        else:  # what asks for no boundary has none
            with pytest.raises(simulate.SimulationError, match=r"out-of-bounds|race"):
                forward(x, False, out=out)
    finally:
        cuda.simulate_with(None)


def test_who_wants_nothing_that_is_gone_gets_no_module(tmp_path):
    assert not older.wants("tl.math.exp2(x) + tl.load(x)") and not older.wants("make_block_ptr")
    assert older.wants("y = tl.math.tanh(x)") and older.wants("y = tl.libdevice.tanh(x)")
