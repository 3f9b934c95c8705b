"""The int8 product on CPUs of all kinds: VNNI, AVX-512 and AVX2 without it, and no vector instructions to lean on."""

import ctypes
import platform
import shutil

import pytest
import torch

import kernels.cpu as cpu

SOURCE = cpu.HERE / "q8_matmul" / "simd.cpp"
KINDS = {"this CPU": (), "oldest": ("-march=x86-64",)}
if "avx512" in cpu.cpu_flags():
    KINDS |= {"no VNNI": ("-mno-avx512vnni",), "AVX2": ("-mno-avx512f",)}
if platform.machine() != "x86_64":
    KINDS = {"this CPU": ()}
SHAPES = [(1, 37, 128, 64), (5, 9, 77, 32), (4, 8, 70, 7), (2, 5, 200, 128), (1, 3, 9, 16)]

pytestmark = pytest.mark.skipif(not any(shutil.which(c) for c in ("g++", "clang++")), reason="no C++ compiler")


SLOW = [kind for kind in KINDS if kind != "this CPU"]  # each is compiled anew


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in KINDS])
def test_every_kind_of_cpu_finds_the_same_whole_numbers(kind):
    """Scales are powers of two, and so every sum is exact: all of out is the product of whole numbers."""
    library = ctypes.CDLL(str(cpu.build(SOURCE, *KINDS[kind], cpu.DTYPE_FLAGS[torch.float32])))
    gen = torch.Generator().manual_seed(3)
    for M, N, K, G in SHAPES:
        KG = -(-K // G)
        x, weight = (torch.randint(-127, 128, (rows, K), generator=gen, dtype=torch.int8) for rows in (M, N))
        x[0], weight[0] = 127, -127
        a, b = (2.0 ** torch.randint(0, 2, (rows, KG), generator=gen) for rows in (M, N))
        out = torch.full((M, N), torch.nan)
        scratch = torch.empty(64 * (M * KG + 1), dtype=torch.uint8)
        scratch = scratch[-scratch.data_ptr() % 64 :]
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (out, x, a, weight, b, scratch)]
        library.q8_matmul_forward(*pointers, *map(ctypes.c_int64, (M, N, K, G)))
        wide = [v.double() * s.double().repeat_interleave(G, -1)[:, :K] for v, s in ((x, a), (weight, b))]
        assert torch.equal(out.double(), wide[0] @ wide[1].T), f"{kind}: {(M, N, K, G)}"
