"""C++ attention where no ragged shape leads: windows as wide as blocks, or a key more or less; every ratio of heads;
and cut up for more threads than heads, or not."""

import pytest
import torch

from tests.kernels.on_cpus import right

BASE = dict(B=1, T=293, NH=2, NKV=1, HS=24, causal=True, dtype="fp32")  # blocks are of 32 to 128 tokens


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def threads(request) -> int:
    """Of OpenMP: with two and one head of keys, that head is cut up."""
    torch.set_num_threads(request.param)
    return request.param


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize(("name", "dtype"), [("cpu.flash", "fp32"), ("cpu.simd", "fp32"), ("cpu.amx", "bf16")])
def test_windows(name, dtype, phase, threads):
    for window in (1, 47, 48, 97, 292):
        assert right("attention", name, phase, dict(BASE, window=window, dtype=dtype)), window


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("name", ["cpu.flash", "cpu.simd", "cpu.naive", "cpu.amx"])
def test_more_windows(name, phase, dtype, threads):
    for T in (96, 293):
        for window in (1, 2, 15, 17, 48, 49, 63, 64, 65, 95, 96, 97, 128, 144, 292, 293, 1000):
            assert right("attention", name, phase, dict(BASE, T=T, dtype=dtype, window=window)), (T, window)


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("cpu.flash", "fp32"), ("cpu.simd", "fp32"), ("cpu.naive", "fp32"), ("cpu.amx", "bf16")]
)
def test_ratios_of_heads(name, dtype, phase, window, threads):
    for NH, NKV in ((1, 1), (4, 2), (6, 2), (4, 1), (8, 1), (24, 3)):
        for HS in (48, 128):
            shape = dict(BASE, T=131, NH=NH, NKV=NKV, HS=HS, window=window, dtype=dtype)
            assert right("attention", name, phase, shape), (NH, NKV, HS)
