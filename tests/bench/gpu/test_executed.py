"""What a launch executes: kernels whose counts are known by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core.arena import Arena
from bench.core.case import Case, draw
from bench.core.variants import discover
from bench.gpu import executed, units
from bench.gpu.executed import Executed
from bench.gpu.launches import launching_with
from tests.bench.gpu.test_resources import write

N, WARPS = 512, 16

BODY = """
    __shared__ float rows[32 * 32];
    float x = to_float(a[i]);
    for (int j = 0; j < 3 + (n < 0); j++) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    if (threadIdx.x < 32) asm volatile("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
    if (n < 0) asm volatile("sin.approx.f32 %0, %0;" : "+f"(x));
    for (int j = 0; j < 5 + (n < 0); j++) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(x));
    asm volatile("add.f32 %0, %0, %0; mul.f32 %0, %0, %0; mul.f32 %0, %0, %0;" : "+f"(x));
    volatile float* column = rows + threadIdx.x % 32 * STRIDE + threadIdx.x / 32 * (STRIDE == 1 ? 32 : 1);
    *column = x;
    if (i < n) out[i] = from_float<T>(*column);
"""


def counted(folder: Path, body: str) -> tuple[Executed, dict[str, Any]]:
    """What a kernel of two tensors of N executed, and its outputs."""
    write(folder, body)
    variant = next(v for v in discover((folder,)) if (v.layer, v.name) == ("residual", "cuda.mine"))
    case = Case("residual", "forward", {"N": N, "dtype": "fp32"}, "by hand")
    arena = Arena(case, "cpu", None)
    arena.load(draw(case))
    arena.reset()
    run = executed.Counting()
    with launching_with(run, "sm_90a"):
        arena.call(variant.load().forward)
    (found,) = run.found
    return found, dict(arena.outputs)


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (32, 32)])
def test_counts_are_those_by_hand(tmp_path, stride, wavefronts):
    """Two blocks of 8 warps, in each of which one takes a reciprocal; nobody a sine."""
    found, _ = counted(tmp_path / "k", BODY.replace("STRIDE", str(stride)))
    assert found.exp2 == 3 * WARPS, "each lane of each warp, three times"
    assert found.special == 3 * WARPS + 2, "a branch that others do not take, and one that nobody takes"
    assert found.fp32 == (5 + 2) * WARPS, "fma, and of one sum and two products the products: they may be fused"
    assert found.shared_wavefronts == 2 * WARPS * wavefronts, "a store and a load, in a column 32 to a bank"
    assert found.l1_sectors == N * 4 / 32 and found.l2_writes == N * 4 / 32
    assert found.mma_flops == found.wgmma_flops == 0


def test_what_is_counted_is_computed_as_ever(tmp_path):
    body = "if (i < n) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));"
    found, outputs = counted(tmp_path / "k", body)
    case = Case("residual", "forward", {"N": N, "dtype": "fp32"}, "by hand")
    drawn: Any = draw(case)
    assert torch.equal(outputs["out"], drawn["a"] + drawn["b"])
    assert found.fp32 == WARPS and found.special == 0


def of_variant(name: str, shape: dict[str, Any]) -> list[Executed]:
    layer, variant_name = name.split()
    variant = next(v for v in discover(()) if (v.layer, v.name) == (layer, variant_name))
    return units.counted(variant.load(), Case(layer, "forward", shape, "by hand"))


def test_tritons_launches_are_counted_too():
    pytest.importorskip("triton")
    (found,) = of_variant("residual triton.block", {"N": 4096, "dtype": "fp32"})
    assert found.l1_sectors == 2 * 4096 * 4 / 32 and found.l2_writes == 4096 * 4 / 32
    assert found.fp32 == 4096 / 32 and found.l2_reads == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("cuda.wgmma", "wgmma_flops"), ("cuda.mma", "mma_flops")])
def test_a_tile_of_a_product_is_that_by_hand(name, kind):
    """128 x 128 results of 192 terms: each operand comes once, past L1, the result goes once."""
    shape = dict(M=128, N=128, K=192, epilogue="none", dgelu=False, dtype="bf16")
    (found,) = of_variant(f"matmul {name}", shape)
    assert getattr(found, kind) == found.mma_flops + found.wgmma_flops == 2 * 128 * 128 * 192
    assert found.l2_reads == 2 * 128 * 192 * 2 / 32 and found.l2_writes == 128 * 128 * 2 / 32
    # Two warpgroups' 64 rows of A and all of B for each 16 terms; or four warps' 64 by 64, and what is copied there.
    operands = 192 // 16 * {"cuda.wgmma": 2 * (64 + 128), "cuda.mma": 4 * (64 + 64) + (128 + 128)}[name] * 16 * 2 / 128
    assert operands <= found.shared_wavefronts <= operands + 2 * 128 * 128 * 4 / 128, "the results go in and out"


def test_each_product_counts_what_its_name_says():
    mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    assert executed.counted(mma, "") == {"mma_flops": 2 * 16 * 8 * 16}
    wgmma = "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"
    both = executed.counted(wgmma, f"{wgmma} {{%f1, %f2}}, %rd1, %rd2, 1, 1, 1, 0, 0;")
    # Of four warps, each; A is 64 x 16 and B 128 x 16 of two bytes.
    assert both == {"wgmma_flops": 2 * 64 * 128 * 16 // 4, "operand_bytes": (64 + 128) * 16 * 2 // 4}
    registers = executed.counted(wgmma, f"{wgmma} {{%f1, %f2}}, {{%r1, %r2}}, %rd2, 1, 1, 1, 0, 0;")
    assert registers["operand_bytes"] == 128 * 16 * 2 // 4
    assert not executed.counted("add.s32", "") and not executed.counted("div.rn.f64", "")


def test_what_passes_l1_by_is_told_from_what_goes_through():
    lines = [executed.memory_line(o) for o in ("ld.global.nc.v4.b32", "cp.async.ca.shared.global", "st.global.b32")]
    assert lines == [executed.LOADS, executed.LOADS, executed.OTHER]
    tma = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
    assert executed.memory_line("cp.async.cg.shared.global") == executed.memory_line(tma) == executed.PAST_L1


PTX = """// a comment; with a semicolon
.version 8.0
.target sm_90a
.address_size 64
.file 1 "a.cu"
.visible .entry k(.param .u64 k_param_0)
{
.reg .pred %p<2>;
.reg .f32 %f<3>;
.loc 1 3 1
ex2.approx.ftz.f32 %f1, %f1;
fma.rn.f32 %f1, %f1, %f1, %f1;
@%p1 rcp.approx.ftz.f32 %f1, %f1;
@%p1 bra DONE;
add.f32 %f1, %f1, %f2;
DONE:
ret;
}
"""


def test_a_stretch_ends_where_others_come_in_or_leave():
    """A guarded instruction counts for those that pass the guard, what stands behind a branch for those that stay."""
    program = executed.rewritten(PTX)
    before, guarded, behind = map(dict, program.stretches.values())
    assert before == {"special": 1, "exp2": 1, "fma": 1}
    assert guarded == {"special": 1, "exp2": 0} and behind == {"add": 1}
    assert "@%p1 " + executed.MARK in program.text and ".loc 1 3 1" not in program.text and "a.cu" not in program.text
