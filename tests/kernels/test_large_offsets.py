"""Places beyond 2^31 elements, as a 32-bit offset cannot tell them: by strides and sparse maps, not by memory.

Attention's strides, rope's and the embedding's table reach there at the cost of the pages that are touched; so the
first of a batch is compared with the last, or a row of the table with itself. What must read or write all of its
tensors (matmul, AdamW, the norm, a table's gradient that is overwritten) would need them to be there, and is not
tested.
"""

import mmap

import pytest
import torch

from bench import simulate
from bench.core import variants
from reference import rope

FAR = 2**31 + 2**12  # elements
VARIANTS = variants.discover()


def sparse(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """(elements,) of zeros, of which only what is touched takes memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype=dtype)


def loaded(layer: str, name: str):
    v = variants.find(VARIANTS, layer, name)
    if reason := variants.unavailable(v, "cpu", "bf16"):
        pytest.skip(reason)
    if v.gpu_code:
        simulate.install(v.backend)
    return v.load()


def far_apart(shape: tuple[int, ...], seed: int | None) -> torch.Tensor:
    """(2, T, heads, HS), the two FAR elements apart, with the same contents: random ones, or zeros to be written."""
    T, heads, HS = shape
    made = sparse(FAR + T * heads * HS, torch.bfloat16).as_strided((2, *shape), (FAR, heads * HS, HS, 1))
    if seed is not None:
        made[:] = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return made


@pytest.mark.parametrize(
    ("name", "HS"), [("cpu.naive", 32), ("cpu.simd", 32), ("cpu.flash", 32), ("cuda.mma", 32), ("cuda.wgmma", 64)]
)
def test_attentions_strides_are_64_bits_wide(name, HS):
    module = loaded("attention", name)
    T, NH, NKV = 20, 2, 1
    shape = dict(B=2, T=T, NH=NH, NKV=NKV, HS=HS, causal=True, dtype="bf16")

    def scratch(phase: str) -> dict:
        if not hasattr(module, "workspace"):
            return {}
        size = module.workspace(shape, phase)
        return dict(workspace=torch.empty(size, dtype=torch.uint8) if size else None)

    def split(packed: torch.Tensor) -> list[torch.Tensor]:
        return list(packed.split([NH, NKV, NKV], dim=2))

    qkv = split(far_apart((T, NH + 2 * NKV, HS), 1))
    out, lse = torch.empty(2, T, NH, HS, dtype=torch.bfloat16), torch.empty(2, NH, T)
    call(module, "forward", *qkv, True, out=out, lse=lse, **scratch("forward"))
    assert torch.equal(out[0], out[1]) and out.float().abs().mean() > 0.1
    dout = torch.randn(T, NH, HS, generator=torch.Generator().manual_seed(2)).bfloat16().expand(2, -1, -1, -1)
    dq, dk, dv = split(far_apart((T, NH + 2 * NKV, HS), None))
    grads = dict(dq=dq, dk=dk, dv=dv)
    call(module, "backward", dout.contiguous(), *qkv, out, lse, True, **grads, **scratch("backward"))
    for name, grad in grads.items():
        assert torch.equal(grad[0], grad[1]) and grad.float().abs().mean() > 0.01, name


def call(module, phase: str, *args, workspace=None, **outputs) -> None:
    given = dict(workspace=workspace) if variants.takes_workspace(module, phase) else {}
    getattr(module, phase)(*args, **outputs, **given)


@pytest.mark.parametrize("name", ["cpu.naive", "cpu.simd", "cuda.naive", "cuda.shared", "triton.sorted"])
def test_a_tables_rows_are_64_bits_away(name):
    """The last row of a table of more than 2^31 elements is read."""
    module = loaded("embedding", name)
    C = 64
    V = FAR // C
    wte = sparse(V * C, torch.bfloat16).view(V, C)
    wte[-1], wte[1] = 3.0, 5.0
    tokens = torch.tensor([[V - 1, 1, V - 1]])
    out = torch.empty(1, 3, C, dtype=torch.bfloat16)
    call(module, "forward", tokens, wte, torch.ones(3, C, dtype=torch.bfloat16), out=out)
    assert out[0, :, 0].tolist() == [4.0, 6.0, 4.0] and torch.equal(out, out[..., :1].expand_as(out))


@pytest.mark.parametrize("style", ["interleaved", "half"])
@pytest.mark.parametrize("name", ["cpu.naive", "cpu.simd", "cuda.naive", "cuda.shared", "triton.heads"])
def test_heads_that_rope_leaves_alone_take_it_64_bits_away(name, style):
    module = loaded("rope", name)
    HS, R = 64, 3
    H = FAR // HS
    qkv = sparse(2 * H * HS, torch.bfloat16).view(2, 1, H, HS)
    before = torch.randn(R, HS, generator=torch.Generator().manual_seed(3)).bfloat16()
    qkv[:, 0, :R] = before
    cos, sin = rope.table(8, HS, 1e4)
    call(module, "forward", torch.tensor([5, 5]), cos, sin, R, style, qkv=qkv)
    assert torch.equal(qkv[0, 0, :R], qkv[1, 0, :R]) and not torch.equal(qkv[1, 0, :R], before)
    assert not qkv[:, 0, R : 2 * R].any()
