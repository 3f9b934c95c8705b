"""AMX's tiles: products that fill no tile, that take several blocks and slices; and a process that gets no tiles."""

import ctypes

import pytest

from kernels import Unavailable, cpu
from tests.kernels.on_cpus import right


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [(1, 1, 1), (17, 31, 33), (33, 1570, 40), (2070, 40, 36), (40, 33, 1030), (1060, 2080, 65)],
)
def test_products_beyond_a_tile_a_block_and_a_slice(M, N, K, phase):
    shape = dict(M=M, N=N, K=K, epilogue="bias_gelu", accumulate=True, dgelu=True, dtype="bf16")
    assert right("matmul", "cpu.amx", phase, shape)


def test_without_tiles_it_cannot_run(monkeypatch):
    class Refusing:
        def __init__(self, name):
            pass

        def syscall(self, *numbers):
            return -1

    monkeypatch.setattr(ctypes, "CDLL", Refusing)
    cpu.ask_for_tiles.cache_clear()
    try:
        with pytest.raises(Unavailable, match="AMX's tiles"):
            cpu.Kernel("none.cpp", "none", tiles=True)._load(cpu.torch.bfloat16)
    finally:
        cpu.ask_for_tiles.cache_clear()
