"""Which kernels are a variant's own: names out of its sources against names as a profiler shows them."""

import ctypes
import functools
import os
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch

from bench.core import variants
from bench.gpu.counts import counted_case
from bench.gpu.launches import launches_of
from bench.machine import facts
from bench.machine.devices import Kernel
from bench.trial import attest, ran

ALL = variants.discover()
ATEN = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, "
    "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>)"
)
LIBRARIES = [
    ATEN,
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_64x64_64x6_nn_align8>(Params)",
    "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT",
    "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x8_stage3_warpsize1x2x1_ffma_aligna4_alignc4_execute_kernel",
    "void cudnn::ops::scalePackedTensor_kernel<float, float>(long, float*, float)",
    "triton_poi_fused_add_0",
    "void at::native::(anonymous namespace)::gelu_forward<float>(float*)",  # of another namespace
]


# One of cuBLAS's that have such a result, for a row or a column (symbols of libcublasLt 13.1).
GEMVX = "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, float, (2)>(gemv<int>)"


def find(layer: str, name: str) -> variants.Variant:
    return variants.find(ALL, layer, name)


@pytest.mark.parametrize(
    ("name", "qualified", "short"),
    [
        ("gelu_forward", "gelu_forward", "gelu_forward"),
        ("void f<__nv_bfloat16, 64>(__nv_bfloat16*, int)", "f", "f<__nv_bfloat16, 64>"),
        ("void (anonymous namespace)::f<float>(float*)", "f", "(anonymous namespace)::f<float>"),
        ("Memcpy DtoD (Device -> Device)", "DtoD", "Memcpy DtoD (Device -> Device)"),
        (ATEN, "at::native::vectorized_elementwise_kernel", ran.short(ATEN)),
        (GEMVX, "internal::gemvx::kernel", "internal::gemvx::kernel<int, float, (2)>"),
        ("void f<(A)(1), ((2) > (1))>(g<int>(*)(int))", "f", "f<(A)(1), ((2) > (1))>"),
        ("f<unclosed", "f", "f<unclosed"),
    ],
)
def test_names_lose_what_does_not_tell_them_apart(name, qualified, short):
    assert ran.qualified(name) == qualified and ran.short(name) == short
    assert len(ran.short(name)) <= ran.NAME_LENGTH


@pytest.mark.parametrize("name", ["cuda.naive", "cuda.shared", "triton.block"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_librarys_kernel_is_foreign(name, library):
    assert ran.foreign(find("gelu", name), [library, "gelu_forward"]) == [ran.short(library)]


def test_copies_and_fills_are_nobodys():
    assert ran.foreign(find("gelu", "cuda.naive"), ["Memset (Device)", "Memcpy DtoD (Device -> Device)"]) == []


def test_a_variants_kernels_are_not_anothers():
    assert ran.foreign(find("layernorm", "cuda.naive"), ["void gelu_forward<float>(float*)"])
    assert ran.foreign(find("softmax", "cuda.shared"), ["layernorm_add_partials"])


# What calls a library has kernels of its own in few cases: tests/kernels/cuda.
OURS = [v for v in ALL if v.backend == "cuda" and not set(variants.LIBRARIES) & set(v.requires)]
CUDA = [(v, phase) for v in OURS for phase in sorted(v.functions & {"forward", "backward"})]


@pytest.mark.parametrize(("variant", "phase"), CUDA, ids=lambda p: p if isinstance(p, str) else f"{p.layer}-{p.name}")
def test_what_a_cuda_variant_launches_is_its_own(variant, phase):
    case, module = (
        counted_case(variant.layer, phase, "fp32" if "fp32" in variant.dtypes else variant.dtypes[0]),
        variant.load(),
    )
    shapes = [case.shape, *({**case.shape, **sizes} for sizes in case.module.RAGGED)]
    taken = getattr(module, "supports", lambda shape: True)
    case = replace(case, shape=next(shape for shape in shapes if taken(shape) is True))
    launched = [f"void {use.build.name}(float*)" for use in launches_of(module, case)]
    assert launched and ran.foreign(variant, launched) == []


def test_what_a_triton_variant_launches_is_its_own():
    for layer, name in (("gelu", "triton.block"), ("residual_layernorm", "triton.rows")):
        variant = find(layer, name)
        launched = [use.build.name for use in launches_of(variant.load(), counted_case(layer, "forward", "fp32"))]
        assert launched and ran.foreign(variant, launched) == []


# --- what a CPU kernel is linked against ---

BORROWS = {
    "dlsym": ("library", '#include <dlfcn.h>\nvoid* f() { return dlsym(RTLD_DEFAULT, "cblas_sgemm"); }'),
    "cblas_sgemm": ("library", 'extern "C" void cblas_sgemm(); void f() { cblas_sgemm(); }'),
    "_ZN2at3addEv": ("library", "namespace at { void add(); } void f() { at::add(); }"),
    "system": ("library", '#include <cstdlib>\nint f() { return system("true"); }'),
    "setpriority": ("global_state", "#include <sys/resource.h>\nvoid f() { setpriority(PRIO_PROCESS, 0, 0); }"),
    "setitimer": ("global_state", "#include <sys/time.h>\nvoid f() { setitimer(ITIMER_REAL, nullptr, nullptr); }"),
    "sched_setscheduler": (
        "global_state",
        "#include <sched.h>\nint f(sched_param* p) { return sched_setscheduler(0, 1, p); }",
    ),
    "omp_set_num_threads": ("global_state", "#include <omp.h>\nvoid f() { omp_set_num_threads(2); }"),
    "syscall": ("global_state", "#include <unistd.h>\nlong f() { return syscall(144, 0, 1); }"),
    "fesetround": ("global_state", "#include <cfenv>\nvoid f() { fesetround(FE_UPWARD); }"),
    "clock_gettime": ("source", "#include <time.h>\nvoid f(timespec* t) { clock_gettime(CLOCK_MONOTONIC, t); }"),
    "dlmopen": (
        "library",
        'extern "C" void* g(...) __asm__("dlmopen") __attribute__((weak));\nvoid* f() { return g(0); }',
    ),
}
HONEST = """
#include <cmath>
#include <thread>
#include <vector>
extern "C" void f(float* out, const float* x, long n) {
    std::vector<float> sums(64);
    #pragma omp parallel for
    for (long i = 0; i < n; i++) out[i] = std::tanh(x[i]) + std::exp(x[i]);
    std::thread([&] { sums[0] = out[0]; }).join();
    if (n < 0) throw sums[0];
}
"""


@functools.cache
def compiler() -> str:
    return shutil.which("g++") or pytest.skip("no g++")


def built(source, folder):
    (folder / "a.cpp").write_text(source)
    command = [compiler(), "-O1", "-fopenmp", "-shared", "-fPIC", "-std=c++17", folder / "a.cpp", "-o", folder / "a.so"]
    subprocess.run(command, check=True, timeout=60)
    return folder / "a.so"


@pytest.mark.parametrize("name", BORROWS)
def test_what_a_library_has_others_do_is_read_from_it(name, tmp_path):
    check, source = BORROWS[name]
    assert name in ran.borrowed(built(source, tmp_path))[check]


def test_what_every_kernel_needs_is_not_borrowed(tmp_path):
    library = built(HONEST, tmp_path)
    assert {"GOMP_parallel", "tanhf"} <= set(ran.undefined(library)) and ran.borrowed(library) == {}


def test_what_is_no_library_is_refused(tmp_path):
    (tmp_path / "a.so").write_text("no")
    with pytest.raises(ValueError, match="ELF"):
        ran.borrowed(tmp_path / "a.so")


def test_the_kernels_here_borrow_nothing():
    before = facts.mapped()
    variant = find("softmax", "cpu.simd")
    if reason := variants.unavailable(variant, "cpu", "fp32"):
        pytest.skip(reason)
    variant.load().forward_kernel._load(torch.float32)
    assert [p.name for p in ran.brought(before)] and attest.judge_linked(variant, before) is None


def test_a_borrowing_library_is_judged(tmp_path):
    before, library = facts.mapped(), built(BORROWS["cblas_sgemm"][1], tmp_path)
    ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    fault = attest.judge_linked(find("softmax", "cpu.simd"), before)
    assert fault == ("library", "a.so calls cblas_sgemm, which are not its own")
    assert attest.judge_linked(find("softmax", "torch.eager"), before) is None


DIRECT = "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::…>"
CAST = "void at::native::unrolled_elementwise_kernel<at::native::bfloat16_copy_kernel_cuda(at::TensorIteratorBase&)::…>"


def test_copies_that_end_a_call_are_told_and_no_others():
    attention = Kernel("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", 1.0, 5.0)
    first, second = Kernel("Memcpy DtoD (Device -> Device)", 5.0, 6.0), Kernel(CAST, 6.0, 8.0)
    before = Kernel(DIRECT, 0.0, 1.0)
    assert ran.last_copies([second, before, attention, first]) == [first, second]
    assert ran.uncopied_seconds([before, attention, first, second]) == 5.0
    assert ran.last_copies([before, attention]) == [] and ran.uncopied_seconds([before, attention]) == 5.0
    assert ran.last_copies([first, second]) == [], "a call that is nothing but copies is its copies"
    concatenated = Kernel("void at::native::(anonymous namespace)::CatArrayBatchedCopy<…>", 8.0, 9.0)
    assert ran.last_copies([attention, first, concatenated]) == [], "that is work of another kind"
    assert ran.last_copies([attention, Kernel("Memcpy HtoD (Pinned -> Device)", 5.0, 6.0)]) == []
