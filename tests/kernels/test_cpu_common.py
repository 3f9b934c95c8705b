"""common.hpp's arithmetic against numpy and torch, with this CPU's instructions and the oldest; and the launcher."""

import ctypes
import platform
import shutil

import numpy as np
import pytest
import torch

import kernels.cpu as cpu
from kernels import Unavailable

PROBE = cpu.HERE.parent.parent / "tests" / "kernels" / "common_probe.cpp"
BASELINE = {"x86_64": "-march=x86-64", "aarch64": "-march=armv8-a"}.get(platform.machine())

pytestmark = pytest.mark.skipif(not any(shutil.which(c) for c in ("g++", "clang++")), reason="no C++ compiler")


@pytest.fixture(scope="module", params=["this CPU", "baseline"])
def march(request):
    """Extra compiler flags: none, or those of the oldest CPU, where common.hpp has no intrinsics to lean on."""
    if request.param == "this CPU":
        return []
    if BASELINE is None:
        pytest.skip("no known baseline for this CPU")
    return [BASELINE]


def call(entry, march, dtype, *args):
    library = ctypes.CDLL(str(cpu.build(PROBE, *march, cpu.DTYPE_FLAGS[dtype])))
    getattr(library, entry)(
        *[ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else ctypes.c_int64(a) for a in args]
    )


def apply(entry, march, x: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(x, torch.nan)
    call(entry, march, torch.float32, out, x, x.numel())
    return out


def ulps(got: torch.Tensor, truth: np.ndarray) -> float:
    """Largest error in units of the last place of the truth, subnormal results included."""
    unit = np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)
    return float((np.abs(got.double().numpy() - truth) / unit).max())


def spread(low: float, high: float) -> torch.Tensor:
    """A million values in between, a few of them close to zero; not a multiple of the vector length."""
    near_zero = torch.logspace(-30, -1, 1001)
    return torch.cat([torch.linspace(low, high, 1_000_003), near_zero, -near_zero, torch.zeros(1)])


def test_exp_is_right_to_one_unit(march):
    x = spread(-103.9, 88.72)
    assert ulps(apply("probe_exp", march, x), np.exp(x.double().numpy())) < 1.1


def test_exp_at_its_ends(march):
    x = torch.tensor([-torch.inf, -1e30, -104, 0, 88.8, 1e30, torch.inf, torch.nan])
    want = torch.tensor([0, 0, 0, 1, torch.inf, torch.inf, torch.inf, torch.nan])
    torch.testing.assert_close(apply("probe_exp", march, x), want, rtol=0, atol=0, equal_nan=True)


def test_exp2_is_right_to_two_units(march):
    x = spread(-149, 127)
    assert ulps(apply("probe_exp2", march, x), np.exp2(x.double().numpy())) < 2


def test_exp2_of_minus_infinity_is_zero(march):
    assert apply("probe_exp2", march, torch.tensor([-torch.inf, -1e30, 0.0])).tolist() == [0, 0, 1]


def test_reciprocal_is_right_to_two_units(march):
    x = torch.cat([torch.logspace(-37, 37, 1_000_003), -torch.logspace(-37, 37, 1001)])
    assert ulps(apply("probe_reciprocal", march, x), 1 / x.double().numpy()) < 2


def finite_bits(step: int) -> torch.Tensor:
    """fp32 values over all bit patterns; without subnormal ones, which the bf16 instruction flushes to zero."""
    x = torch.arange(-(2**31), 2**31, step).to(torch.int32).view(torch.float32)
    return x[x.isfinite() & ((x.abs() >= torch.finfo(torch.float32).tiny) | (x == 0))]


def test_bf16_is_rounded_to_nearest_even(march):
    ties = (torch.arange(0x3F80, 0x3FFF, dtype=torch.int32) << 16 | 0x8000).view(torch.float32)
    x = torch.cat([finite_bits(65_521), ties, -ties, torch.tensor([torch.inf, -torch.inf, 3.4e38, -0.0])])
    one, sixteen = torch.zeros(2, x.numel(), dtype=torch.bfloat16)
    call("probe_store", march, torch.bfloat16, one, sixteen, x, x.numel())
    want = x.to(torch.bfloat16).view(torch.int16)
    assert torch.equal(one.view(torch.int16), want)
    assert torch.equal(sixteen.view(torch.int16), want)


def test_a_nan_stays_a_nan_in_bf16(march):
    payloads = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    x = payloads.repeat(5)
    one, sixteen = torch.zeros(2, x.numel(), dtype=torch.bfloat16)
    call("probe_store", march, torch.bfloat16, one, sixteen, x, x.numel())
    assert one.isnan().all() and sixteen.isnan().all()


def test_every_bf16_is_read_exactly(march):
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)[:-3].clone()
    one, sixteen = torch.zeros(2, x.numel())
    call("probe_load", march, torch.bfloat16, one, sixteen, x, x.numel())
    for got in (one, sixteen):
        torch.testing.assert_close(got, x.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("n", range(17))
def test_a_part_touches_its_part_only(march, n):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.arange(1, 33, dtype=torch.float32)
        one, sixteen = torch.full((2, 32), -7, dtype=dtype)
        call("probe_store", march, dtype, one, sixteen, x, n)
        assert torch.equal(sixteen[:n].float(), x[:n]) and (sixteen[n:] == -7).all()


@pytest.mark.parametrize("n", [1, 7, 16])
def test_sum_and_maximum_over_lanes(march, n):
    x, out = -torch.arange(3.0, 19.0), torch.zeros(2)
    x[n // 2] = -1
    call("probe_reduce", march, torch.float32, out, x, n)
    assert out.tolist() == [x[:n].sum().item(), -1]


def test_a_compile_error_shows_the_compilers_message(tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text('#include "common.hpp"\nEXPORT void f() { no_such_function(); }\n')
    with pytest.raises(cpu.CompileError, match=r"(?s)broken.cpp.*no_such_function"):
        cpu.build(source, "-DT_FP32")


def test_without_a_compiler_the_message_says_what_to_install(tmp_path, monkeypatch):
    cpu.find_compiler.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    try:
        with pytest.raises(Unavailable, match="install g\\+\\+"):
            cpu.build(PROBE, "-DT_FP32")
    finally:
        cpu.find_compiler.cache_clear()


@pytest.mark.parametrize("include", ['#include "helper.h"', "#include NAME"])
def test_a_build_is_as_new_as_what_it_includes(include, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "answer.cpp"
    source.write_text(f'#define NAME "helper.h"\n{include}\nextern "C" void answer(int* out) {{ *out = ANSWER; }}\n')
    built = []
    for answer in (3, 4):
        (tmp_path / "helper.h").write_text(f"#define ANSWER {answer}\n")
        cpu._unkept.clear()  # another process
        built.append(cpu.build(source, "-DT_FP32").read_bytes())
    assert built[0] != built[1]


def test_what_the_compiler_has_read_and_nobody_expected_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "answer.cpp"
    source.write_text('#include "helper.h"\nextern "C" void answer(int* out) { *out = 1; }\n')
    (tmp_path / "helper.h").write_text("")
    assert cpu.build(source, "-DT_FP32").suffix == ".so"
    (hidden := tmp_path / "hidden").mkdir()
    (tmp_path / "helper.h").rename(hidden / "helper.h")
    assert cpu.build(source, "-DT_FP32", f"-I{hidden}").suffix == ".part"


def test_the_cache_is_used_until_something_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" void answer(int* out) { *out = 1; }\n')
    first = cpu.build(source, "-DT_FP32")
    built = first.stat().st_mtime_ns
    assert cpu.build(source, "-DT_FP32") == first and first.stat().st_mtime_ns == built
    assert cpu.build(source, "-DT_BF16") != first
    source.write_text(source.read_text().replace("1", "2"))
    second = cpu.build(source, "-DT_FP32")
    assert second != first
    out = ctypes.c_int()
    ctypes.CDLL(str(second)).answer(ctypes.byref(out))
    assert out.value == 2


def test_a_dtype_without_a_build_is_refused():
    kernel = cpu.Kernel("common_probe.cpp", "probe_exp")
    x = torch.zeros(4, dtype=torch.float16)
    with pytest.raises(Unavailable, match=r"not torch\.float16"):
        kernel(x, x, 4)
