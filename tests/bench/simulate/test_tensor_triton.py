"""Triton as an oracle: its compiled matmuls and attention, which are known to be right, run right and silently here.

Their fragments, swizzles and matrix descriptors are not ours, so that a misreading of the manual shows.
"""

import struct

import pytest
import torch

from bench.simulate import SimulationError, run_ptx, tensor_map
from bench.simulate.ptx import parse
from bench.simulate.triton_driver import triton_version, with_fences
from kernels.cuda import Argument

triton = pytest.importorskip("triton", reason="Triton is not installed (pip install 'layerbench[simulate]')")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
RELATIVE_ERROR = 4e-3  # of the greatest element: bf16's rounding


@triton.jit
def matmul(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, K_FIRST: tl.constexpr):
    rows, columns = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    sums = tl.zeros((BM, BN), tl.float32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        a_mask, b_mask = (rows < M)[:, None] & (k < K)[None, :], (k < K)[:, None] & (columns < N)[None, :]
        b_at = k[:, None] * N + columns[None, :] if K_FIRST else columns[None, :] * K + k[:, None]
        left = tl.load(a + rows[:, None] * K + k[None, :], mask=a_mask, other=0.0)
        sums = tl.dot(left, tl.load(b + b_at, mask=b_mask, other=0.0), sums)
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(c + rows[:, None] * N + columns[None, :], sums.to(c.dtype.element_ty), mask=mask)


@triton.jit
def attention(q, k, v, out, scale, T, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    tile, base = tl.program_id(0), tl.program_id(1) * T * D
    rows, dims = tile * BM + tl.arange(0, BM), tl.arange(0, D)
    queries = tl.load(q + base + rows[:, None] * D + dims[None, :])
    top, total = tl.full((BM,), -float("inf"), tl.float32), tl.zeros((BM,), tl.float32)
    sums = tl.zeros((BM, D), tl.float32)
    for first in range(0, (tile + 1) * BM, BN):
        seen = first + tl.arange(0, BN)
        scores = tl.dot(queries, tl.load(k + base + seen[None, :] * D + dims[:, None])) * scale
        scores = tl.where(rows[:, None] >= seen[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        shares, kept = tl.exp(scores - higher[:, None]), tl.exp(top - higher)
        values = tl.load(v + base + seen[:, None] * D + dims[None, :])
        sums = sums * kept[:, None] + tl.dot(shares.to(values.dtype), values)
        total, top = total * kept + tl.sum(shares, 1), higher
    tl.store(out + base + rows[:, None] * D + dims[None, :], (sums / total[:, None]).to(out.dtype.element_ty))


@triton.jit
def matmul_by_descriptors(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    sums = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        sums = tl.dot(a.load([row, k]), b.load([column, k]).T, sums)
    c.store([row, column], sums.to(tl.bfloat16))


def compile_for(function, capability: int, signature: dict[str, str], constants: dict[str, int], **options):
    whole = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t[0] == "*" or t == "i32"}
    source = ASTSource(
        function, signature={**signature, **dict.fromkeys(constants, "constexpr")}, constexprs=constants, attrs=whole
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def run(compiled, grid: tuple[int, int, int], arguments: list[Argument], seed: int) -> None:
    ptx, facts = compiled.asm["ptx"], compiled.metadata
    (kernel,) = parse(ptx).kernels
    unused = [Argument("scratch", struct.pack("<Q", 0))] * (len(kernel.parameters) - len(arguments))
    shape = (facts.name, grid, (facts.num_warps * 32, 1, 1), facts.shared, [*arguments, *unused])
    try:
        run_ptx(ptx, *shape, seed=seed)
    except SimulationError as error:
        # Up to 3.7 Triton leaves out the fence between cp.async and wgmma, which the manual wants.
        assert error.reports[0].kind == "proxy" and triton_version() < (3, 8)
        run_ptx(with_fences(ptx), *shape, seed=seed)


def pointer(name: str, tensor: torch.Tensor, const: bool = True) -> Argument:
    return Argument(name, struct.pack("<Q", tensor.data_ptr()), (tensor,), const)


def number(code: str, value: float) -> Argument:
    return Argument("number", struct.pack(f"<{code}", value))


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got.double() - want).abs().max() <= RELATIVE_ERROR * want.abs().max()


def draw(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize(("capability", "k_first"), [(80, 0), (90, 0), (90, 1)])
def test_matmul(capability, dtype, k_first):
    m, n, k = 112, 96, 80
    a, b = draw(m, k, dtype=dtype), draw(n, k, dtype=dtype)
    given = b.T.contiguous() if k_first else b
    kind = "*" + NAMES[dtype]
    signature = {"a": kind, "b": kind, "c": kind, "M": "i32", "N": "i32", "K": "i32"}
    constants = {"BM": 64, "BN": 64, "BK": 32, "K_FIRST": k_first}
    compiled = compile_for(matmul, capability, signature, constants, num_warps=4, num_stages=3)
    for seed in range(4):
        out = torch.full((m, n), float("nan"), dtype=dtype)
        arguments = [pointer("a", a), pointer("b", given), pointer("c", out, const=False)]
        run(compiled, (2, 2, 1), [*arguments, *(number("i", x) for x in (m, n, k))], seed)
        assert_close(out, a.double() @ b.double().T)


@pytest.mark.parametrize("capability", (80, 90))
def test_attention(capability):
    heads, t, size = 2, 128, 64
    q, k, v = draw(3, heads, t, size)
    signature = {**dict.fromkeys(("q", "k", "v", "out"), "*bf16"), "scale": "fp32", "T": "i32"}
    compiled = compile_for(attention, capability, signature, {"D": size, "BM": 64, "BN": 64}, num_warps=4, num_stages=2)
    whole = [x.double()[None] for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(whole[0], whole[1], whole[2], is_causal=True)[0]
    for seed in range(4):
        out = torch.full_like(q, float("nan"))
        arguments = [*(pointer("in", x) for x in (q, k, v)), pointer("out", out, const=False)]
        run(compiled, (t // 64, heads, 1), [*arguments, number("f", size**-0.5), number("i", t)], seed)
        assert_close(out, want)


def test_matmul_by_tma():
    """A descriptor is passed as the map, then sizes and strides (Triton 3.6 and 3.9)."""
    m, n, k = 128, 256, 192
    a, b = draw(m, k), draw(n, k)
    signature = {**dict.fromkeys("ab", "tensordesc<bf16[128,64]>"), "c": "tensordesc<bf16[128,128]>", "K": "i32"}
    constants = {"BM": 128, "BN": 128, "BK": 64}
    compiled = compile_for(matmul_by_descriptors, 90, signature, constants, num_warps=8, num_stages=3)
    for seed in range(4):
        out = torch.full((m, n), float("nan"), dtype=torch.bfloat16)
        arguments = []
        for x in (a, b, out):
            sizes = [*(number("i", s) for s in x.shape), *(number("q", s) for s in x.stride())]
            arguments += [tensor_map(x, (128, 64), 128, const=x is not out), *sizes]
        run(compiled, (1, 2, 1), [*arguments, number("i", k)], seed)
        assert_close(out, a.double() @ b.double().T)
