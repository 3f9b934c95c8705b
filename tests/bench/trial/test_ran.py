"""Which kernels are a variant's own: names out of its sources against names as a profiler shows them."""

import pytest

from bench.core import variants
from bench.gpu.counts import counted_case
from bench.gpu.launches import launches_of
from bench.trial import ran

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


CUDA = [(v, phase) for v in ALL if v.backend == "cuda" for phase in sorted(v.functions & {"forward", "backward"})]


@pytest.mark.parametrize(("variant", "phase"), CUDA, ids=lambda p: p if isinstance(p, str) else f"{p.layer}-{p.name}")
def test_what_a_cuda_variant_launches_is_its_own(variant, phase):
    case = counted_case(variant.layer, phase, "fp32")
    launched = [f"void {use.build.name}(float*)" for use in launches_of(variant.load(), case)]
    assert launched and ran.foreign(variant, launched) == []


def test_what_a_triton_variant_launches_is_its_own():
    for layer, name in (("gelu", "triton.block"), ("residual_layernorm", "triton.rows")):
        variant = find(layer, name)
        launched = [use.build.name for use in launches_of(variant.load(), counted_case(layer, "forward", "fp32"))]
        assert launched and ran.foreign(variant, launched) == []
