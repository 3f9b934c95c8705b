"""cuBLASLt's products, over a stand-in that reads back what was described and computes that (tests/stand_in).

`make test` has the descriptions kept by a double; `make test-all` by the real library, which needs no driver for that,
and holds the double against it.
"""

import ctypes
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.core import variants
from bench.core.case import Case, cases_of
from bench.gpu.launches import configured_call, launches_of, untuned
from bench.trial import attest, ran
from kernels import Unavailable
from kernels.cuda import cublaslt as binding
from kernels.cuda import libraries
from tests.stand_in import packages, proof
from tests.stand_in.cublaslt import (
    ATTRIBUTES,
    BGRADB,
    BIAS,
    DGELU,
    GELU_AUX_BIAS,
    PLAIN,
    SETTER,
    Double,
    Real,
    StandIn,
    address_of,
)

SMALL = 1 << 16  # bytes of workspace: to fill what the variant asks for takes longer than all the rest
PHASES = ("forward", "backward")
ALL = frozenset((PLAIN, BIAS, GELU_AUX_BIAS, DGELU, BGRADB))


@pytest.fixture
def variant(monkeypatch):
    """The variant's module, as if no shape had been planned."""
    module = proof.load("matmul", "cuda.cublaslt")
    for place in (binding, module):
        monkeypatch.setattr(place, "WORKSPACE", SMALL)
    monkeypatch.setattr(module, "PRODUCTS", binding.Products())
    with proof.own_kernels_simulated():
        yield module


@pytest.fixture
def there():
    """A stand-in in the library's place."""
    stand_in = StandIn(Double())
    with binding.use(stand_in.library()):
        yield stand_in


def case_of(phase: str, dtype: str, accumulate: bool = False, seed: int = 0, **sizes: Any) -> Case:
    shape = {**sizes, "dtype": dtype}
    return Case("matmul", phase, shape | ({"accumulate": accumulate} if phase == "backward" else {}), "a case", seed)


WHOLE: dict[str, Any] = dict(M=128, N=192, K=256, epilogue="bias_gelu", dgelu=True)
NARROW: dict[str, Any] = dict(
    M=33, N=257, K=104, epilogue="bias_gelu", dgelu=True
)  # rows of out that cannot be fused with GELU


def wanted(case: Case, has: frozenset[int] = ALL) -> set[str]:
    """What must run: the fused product wherever the library has it, and own kernels for the rest."""
    shape, fp32 = case.shape, case.shape["dtype"] == "fp32"
    N, K, epilogue = (shape[name] for name in ("N", "K", "epilogue"))
    if case.phase == "forward":
        if epilogue == "none":
            return {"out"}
        if epilogue == "bias_gelu" and not fp32 and N % 8 == 0 and K > 1 and GELU_AUX_BIAS in has:
            return {"out+bias+gelu"}
        gelu = {"gelu"} if epilogue == "bias_gelu" else set()
        if BIAS in has:
            return {"out+bias"} | gelu
        return {"out", "bias"} | gelu
    dgelu = shape["dgelu"] and not fp32 and K % 8 == 0 and N > 1 and DGELU in has
    found = {"dx+dgelu"} if dgelu else {"dx"} | ({"dgelu"} if shape["dgelu"] else set())
    if epilogue == "none":
        return found | {"dweight"}
    if BGRADB in has and (fp32 or not shape["accumulate"]):
        return found | {"dweight+dbias"} | ({"adding dbias"} if shape["accumulate"] else set())
    return found | {"dweight", "dbias"}


def parts_of(module) -> set[str]:
    told = module.PRODUCTS.used.values()
    plans = {p.product.name + binding.EPILOGUES[p.epilogue] for p in told if not isinstance(p, str) and p.candidates}
    return plans | {each.removesuffix(" (own)") for each in told if isinstance(each, str)}


def fault(module, case: Case, stand_in: StandIn, has: frozenset[int] = ALL) -> str:
    """Why a case is not right, or not made of what it must be made of; "" where all is well."""
    module.PRODUCTS.used.clear()
    try:
        verdict = proof.proved(module, case, stand_in)
    except binding.CublasLtError as error:
        return f"{error}: {stand_in.why}"
    if not verdict.ok:
        return f"{verdict.check}: {verdict.evidence}"
    return "" if parts_of(module) == wanted(case, has) else f"ran {parts_of(module)}, not {wanted(case, has)}"


def check_all(module, cases: list[Case], stand_in: StandIn) -> None:
    assert {str(c): told for c in cases if (told := fault(module, c, stand_in))} == {}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_dtype_and_ragged_shape_is_right_and_fused_where_it_must_be(variant, there, dtype, phase):
    cases = cases_of("matmul", phase, dtype, [0, 1], thorough=False)
    check_all(variant, cases if dtype == "bf16" else [c for c in cases if c.edit is None], there)


@pytest.mark.parametrize("lacks", [{GELU_AUX_BIAS}, {DGELU}, {BGRADB}, {BIAS, GELU_AUX_BIAS}, ALL - {PLAIN}], ids=str)
def test_what_a_library_does_not_fuse_own_kernels_do(variant, there, lacks):
    there.has = ALL - lacks
    cases = [case_of(phase, "bf16", **sizes) for phase in PHASES for sizes in (WHOLE, NARROW)]
    cases += [case_of("forward", "fp16", **WHOLE | dict(epilogue="bias")), case_of("backward", "fp32", True, **NARROW)]
    assert {str(c): told for c in cases if (told := fault(variant, c, there, there.has))} == {}


def test_without_the_plain_product_the_case_is_not_supported(variant, there):
    there.has = frozenset()
    with pytest.raises(Unavailable, match="no algorithm"):
        proof.called(variant, case_of("forward", "bf16", **WHOLE), there)


# --- planted mistakes ---


@dataclass
class Mistake:
    """What is wrong, how it comes about, and the cases of which one must show it."""

    name: str
    plant: Callable[[Any, Any], None]  # (monkeypatch, the variant's module)
    cases: tuple[Case, ...]


FORWARD, BACKWARD = case_of("forward", "bf16", **WHOLE), case_of("backward", "bf16", **WHOLE)
ADDED, ADDED_HALF = case_of("backward", "fp32", True, **NARROW), case_of("backward", "bf16", True, **WHOLE)
UNFUSED = case_of("forward", "bf16", **NARROW)
BIASED = case_of("forward", "fp32", **NARROW | dict(epilogue="bias"))


def in_the_variant(name: str, value: Any) -> Callable[[Any, Any], None]:
    return lambda monkeypatch, module: monkeypatch.setattr(module, name, value)


def in_the_binding(**values: Any) -> Callable[[Any, Any], None]:
    def plant(monkeypatch, module):
        for name, value in values.items():
            monkeypatch.setattr(binding, name, value)

    return plant


def in_a_call(function: str, edit: Callable[..., tuple]) -> Callable[[Any, Any], None]:
    """The arguments of a function of the library are others."""

    def plant(monkeypatch, module):
        before = binding.Library.call
        monkeypatch.setattr(
            binding.Library,
            "call",
            lambda self, name, *args: before(self, name, *(edit(*args) if name == function else args)),
        )

    return plant


def in_a_launch(edit: Callable[..., tuple]) -> Callable[[Any, Any], None]:
    def plant(monkeypatch, module):
        before = binding._launch
        monkeypatch.setattr(binding, "_launch", lambda *args: before(*edit(*args)))

    return plant


def told_otherwise(attribute: int, value: Callable[[int], int]) -> Callable[..., tuple]:
    """Of a setter's arguments: another value of an attribute."""

    def edit(thing, number, address, size):
        if number == attribute:
            type_ = {4: ctypes.c_int32, 8: ctypes.c_int64}[size]
            there = type_.from_address(address)
            there.value = value(there.value)
        return thing, number, address, size

    return edit


SET, SET_PREFERENCE = "cublasLtMatmulDescSetAttribute", "cublasLtMatmulPreferenceSetAttribute"
LAYOUT, HALF = "cublasLtMatrixLayoutCreate", ctypes.c_float(0.5)
MISTAKES = [
    Mistake("out: weight is not transposed", in_the_variant("OUT", binding.Product("out", (False, False))), (FORWARD,)),
    Mistake("dx: weight is transposed", in_the_variant("DX", binding.Product("dx", (True, False))), (BACKWARD,)),
    Mistake("dweight: dout is not", in_the_variant("DWEIGHT", binding.Product("dweight", (False, False))), (BACKWARD,)),
    Mistake("the attributes of the transposes are swapped", in_the_binding(TRANSA=4, TRANSB=3), (FORWARD, BACKWARD)),
    Mistake(
        "leading dimension too large", in_a_call(LAYOUT, lambda to, t, r, c, ld: (to, t, r, c, ld + 8)), (FORWARD,)
    ),
    Mistake(
        "leading dimension of the other axis", in_a_call(LAYOUT, lambda to, t, r, c, ld: (to, t, r, c, c)), (FORWARD,)
    ),
    Mistake("rows are columns", in_a_call(LAYOUT, lambda to, t, r, c, ld: (to, t, c, r, c)), (FORWARD,)),
    Mistake("bf16 is called fp16", in_the_binding(TYPES={torch.bfloat16: 2}), (FORWARD,)),
    Mistake("TF32", in_the_binding(COMPUTE_32F=77), (BIASED,)),
    Mistake("bias is left out", in_the_variant("BIAS", PLAIN), (BIASED,)),
    Mistake("GELU without its input", in_the_variant("GELU_AUX_BIAS", 4 | 32), (FORWARD,)),
    Mistake("GELU's derivative is left out", in_the_variant("DGELU", PLAIN), (BACKWARD,)),
    Mistake("dbias of the other matrix", in_the_variant("BGRADB", 256), (BACKWARD,)),
    Mistake("the epilogue's attribute is another", in_the_binding(EPILOGUE=6), (FORWARD,)),
    Mistake("the pointers' attributes are swapped", in_the_binding(BIAS_POINTER=11, AUX_POINTER=8), (FORWARD,)),
    Mistake("AUX_LD is too large", in_a_call(SET, told_otherwise(12, lambda ld: ld + 8)), (FORWARD, BACKWARD)),
    Mistake(
        "AUX_LD is refused, and the slow way is right",
        in_a_call(SET, told_otherwise(12, lambda ld: ld + 1)),
        (FORWARD,),
    ),
    Mistake("AUX_LD is not set", in_a_call(SET, told_otherwise(12, lambda ld: 0)), (FORWARD,)),
    Mistake("the bias of the first call", in_a_launch(lambda *a: (*a[:4], 0, *a[5:])), (FORWARD, BACKWARD)),
    Mistake("GELU's input of the first call", in_a_launch(lambda *a: (*a[:5], 0, *a[6:])), (FORWARD, BACKWARD)),
    Mistake("a is b", in_a_launch(lambda p, a, b, *rest: (p, b, a, *rest)), (FORWARD,)),
    Mistake("d is a", in_a_launch(lambda p, a, b, d, *rest: (p, a, b, a, *rest)), (FORWARD,)),
    Mistake("beta is 0", in_the_binding(BETA={False: binding.BETA[False], True: binding.BETA[False]}), (ADDED,)),
    Mistake("beta is 1", in_the_binding(BETA={False: binding.BETA[True], True: binding.BETA[True]}), (BACKWARD,)),
    Mistake("alpha is 1/2", in_the_binding(ALPHA=ctypes.addressof(HALF)), (FORWARD,)),
    Mistake("dbias is not added", in_the_variant("add_parts", lambda *_: None), (ADDED,)),
    Mistake("dbias is rounded and then added", in_the_variant("is_wide", lambda _: True), (ADDED_HALF,)),
    Mistake("no GELU where it is not fused", in_the_variant("gelu", lambda *_: None), (UNFUSED,)),
    Mistake("no derivative where it is not fused", in_the_variant("times_gelu_grad", lambda *_: None), (ADDED,)),
    Mistake("the workspace begins where it lies", in_the_binding(ROUND=64), (FORWARD,)),
    Mistake(
        "more alignment than there is", in_a_call(SET_PREFERENCE, told_otherwise(5, lambda _: 1 << 20)), (FORWARD,)
    ),
    Mistake("sums in no order", in_the_binding(IN_COMPUTE_TYPE=7), (FORWARD,)),
]


def calls_of(case: Case) -> list[Case]:
    """At other addresses the second time, with other contents."""
    return [case, Case(case.layer, case.phase, case.shape, case.name, case.seed + 1)]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_a_planted_mistake_is_found(variant, there, mistake, monkeypatch):
    mistake.plant(monkeypatch, variant)
    kept = [call for case in mistake.cases for call in calls_of(case)]
    assert any(fault(variant, call, there) for call in kept)


def test_the_same_cases_are_right_without_a_mistake(variant, there):
    cases = {str(call): call for m in MISTAKES for case in m.cases for call in calls_of(case)}
    check_all(variant, list(cases.values()), there)


# --- planning, measuring, launching ---


def test_what_was_prepared_is_neither_searched_nor_described_nor_allocated_in_a_call(variant, there):
    for phase in PHASES:
        case = case_of(phase, "bf16", **WHOLE)
        variant.prepare(case.shape, phase)
        searches, things = there.searches, len(there.keeps.things)
        proof.called(variant, case, there)
        assert (there.searches, len(there.keeps.things)) == (searches, things) and searches > 0


def test_a_call_makes_views_and_nothing_else(variant, there):
    there.computes = False  # else the stand-in's own operators are seen
    v = variants.find(proof.VARIANTS, "matmul", "cuda.cublaslt")
    for phase in PHASES:
        case = case_of(phase, "bf16", **WHOLE)
        variant.prepare(case.shape, phase)
        args, kwargs = binding.drawn("matmul", case.shape, phase, "cpu", variant.workspace(case.shape, phase))
        returned, seen = attest.attested(partial(getattr(variant, phase), *args, **kwargs))
        assert returned is None and attest.judge_calls(v, seen) is None, seen
    assert len(there.launched) == 2 * 3


def test_the_fastest_algorithm_is_taken_and_the_row_tells_which(variant, there):
    case, times = case_of("forward", "bf16", **WHOLE), (3.0, 1.0, 2.0)

    def milliseconds(launch: Callable[[], object]) -> float:
        launch()
        return times[there.launched[-1]["algorithm"]]

    def prepare() -> None:
        size = variant.workspace(case.shape, "forward")
        variant.PRODUCTS.prepare("matmul", case.shape, "forward", variant.forward, size, milliseconds)

    prepare()
    _, told = configured_call(variant, lambda: proof.called(variant, case, there))
    assert told == "out+bias+gelu algorithm=1 tile=1 split=1 stages=1 cluster=1 (measured, 2 of 3)"
    assert there.launched[-1]["algorithm"] == 1
    searches = there.searches
    prepare()  # measures nothing again
    assert there.searches == searches and len(there.launched) == 2 * 3 + 1 + 1 + 1

    variant.PRODUCTS.plans.clear()
    there.fails = frozenset({1})
    prepare()
    assert there.launched[-1]["algorithm"] == 2
    _, told = configured_call(variant, partial(proof.called, variant, case, there))
    assert told.endswith("(measured, 2 of 2)")
    there.fails = frozenset()

    variant.PRODUCTS.plans.clear()
    with untuned():
        prepare()
    _, told = configured_call(variant, lambda: proof.called(variant, case, there))
    assert told.endswith("(heuristic, 1 of 3)")


def test_algorithms_that_were_found_and_do_not_run_are_left_out(variant, there):
    there.fails = frozenset({0})
    assert fault(variant, FORWARD, there) == ""
    assert "algorithm=1" in variant.PRODUCTS.text() and variant.PRODUCTS.text().endswith("(heuristic, 1 of 2)")
    there.fails = frozenset({0, 1, 2})
    with pytest.raises(Unavailable, match="no algorithm"):
        proof.called(variant, FORWARD, there)
    assert "out+bias+gelu not fused: no algorithm runs (own)" in variant.PRODUCTS.text().split("; ")


def test_a_tensor_with_gaps_is_refused(variant, there):
    x, weight = torch.zeros(8, 16)[:, :8], torch.zeros(8, 8)
    scratch = torch.empty(SMALL + binding.ROUND, dtype=torch.uint8)
    with pytest.raises(ValueError, match="not contiguous"):
        variant.forward(x, weight, None, "none", out=torch.zeros(8, 8), pre_gelu=None, workspace=scratch)


def test_the_row_tells_what_was_not_fused_and_why(variant, there):
    for case, told in (
        (case_of("forward", "bf16", **NARROW), "out+bias+gelu not fused: rows of 257 elements, no multiple of 8 (own)"),
        (case_of("forward", "fp32", **WHOLE), "gelu (own)"),
        (case_of("backward", "bf16", True, **WHOLE), "dbias (own)"),
    ):
        assert told in configured_call(variant, partial(proof.called, variant, case, there))[1].split("; ")
    there.has = ALL - {BGRADB}
    variant.PRODUCTS.plans.clear()
    _, told = configured_call(variant, lambda: proof.called(variant, BACKWARD, there))
    assert "dweight+dbias not fused: the library has no algorithm (own)" in told.split("; ")


def test_launches_are_on_torchs_current_stream_in_the_context_of_their_gpu(variant, there, monkeypatch):
    entered = []

    class Context:
        def __init__(self, device: int):
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            pass

    streams = itertools.count(0x5000)
    gpu = SimpleNamespace(current_stream=lambda device: next(streams), _current=Context)
    monkeypatch.setattr(binding, "_gpu", lambda: gpu)
    for device, contexts in ((0, set()), (1, {1})):
        monkeypatch.setattr(binding, "place", lambda tensor, device=device: device)
        before = len(there.launched)
        proof.called(variant, FORWARD, there)
        proof.called(variant, FORWARD, there)
        assert [each["stream"] for each in there.launched[before:]] == [0x5000 + before, 0x5001 + before]
        assert set(entered) == contexts


def test_tensors_that_are_less_aligned_have_a_plan_of_their_own(variant, there):
    M, N, K = 24, 16, 32
    raw = [torch.randn(n + 1).bfloat16()[1:] for n in (M * K, N * K, M * N)]
    assert any(t.data_ptr() % 4 for t in raw)
    x, weight, out = (t.view(sizes) for t, sizes in zip(raw, ((M, K), (N, K), (M, N)), strict=True))
    scratch = torch.empty(SMALL + binding.ROUND, dtype=torch.uint8)
    variant.forward(x, weight, None, "none", out=out, pre_gelu=None, workspace=scratch)
    assert (out.double() - x.double() @ weight.double().T).abs().max() < 0.1
    variant.forward(x.clone(), weight.clone(), None, "none", out=out.clone(), pre_gelu=None, workspace=scratch)
    assert there.searches == 2


def test_a_call_costs_the_host_at_most_30_microseconds(variant, there):
    """Of this thread, the best of some turns. The library's functions are one of the C library that answers 0."""
    nothing = address_of(ctypes.CDLL("libm.so.6").fegetround)
    own = there.library()
    args, kwargs = binding.drawn("matmul", FORWARD.shape, "forward", "cpu", variant.workspace(WHOLE, "forward"))
    with binding.use(own):
        variant.forward(*args, **kwargs)
        own.set_attribute, own.matmul = (
            ctypes.CFUNCTYPE(ctypes.c_int32, *binding.FUNCTIONS[name])(nothing)
            for name in ("cublasLtMatmulDescSetAttribute", "cublasLtMatmul")
        )
        best = float("inf")
        for _ in range(30):
            start = time.thread_time()
            for _ in range(20):
                variant.forward(*args, **kwargs)
            best = min(best, (time.thread_time() - start) / 20)
    assert best < 30e-6, best


def test_who_asks_which_kernels_are_launched_needs_no_library(variant):
    names = [use.build.name for use in launches_of(variant, FORWARD)]
    assert names == []
    names = [use.build.name for use in launches_of(variant, case_of("backward", "fp32", True, **WHOLE))]
    assert [n.partition("<")[0] for n in names] == ["times_gelu_grad", "add_parts"]
    with pytest.raises(Unavailable, match="NVIDIA GPU"):
        variant.forward(*[torch.empty(8, 8)] * 2, None, "none", out=torch.empty(8, 8), pre_gelu=None, workspace=None)


def test_the_librarys_kernels_and_our_own_may_run_and_no_others():
    (v,) = [v for v in proof.VARIANTS if v.name == "cuda.cublaslt"]
    theirs = [
        "nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_TNT",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x4_tn_align8>(Params)",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(cublasLt::cublasSplitKParams<float>)",
        "void gelu_of<__nv_bfloat16, 8>(__nv_bfloat16*, __nv_bfloat16 const*, long long)",
        "std::enable_if<!(true), void>::type internal::gemvx::kernel<int, int, float, float, (2)>(T13)",
    ]
    assert ran.foreign(v, theirs) == []
    others = ["void at::native::vectorized_elementwise_kernel<4>(int)", "matmul_forward", "triton_poi_fused_gelu_0"]
    assert ran.foreign(v, others) == sorted(map(ran.short, others))


def test_what_is_missing_is_said_with_the_way_out(monkeypatch):
    (v,) = [v for v in proof.VARIANTS if v.name == "cuda.cublaslt"]
    assert "needs an NVIDIA GPU" in (variants.unavailable(v, "cpu", "bf16") or "")
    monkeypatch.setattr(binding.ctypes, "CDLL", lambda path: (_ for _ in ()).throw(OSError(path)))
    binding.loaded.cache_clear()
    libraries.missing.cache_clear()
    told = libraries.missing("cublaslt", "cuda")
    assert told and "no libcublasLt.so." in told and "pip install 'layerbench[vendor]'" in told
    libraries.missing.cache_clear()


# --- the real library ---


@pytest.fixture(scope="module")
def real() -> Real:
    return Real(packages.library("nvidia-cublas", "libcublasLt.so.*"))


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_real_librarys_descriptions_say_the_same(variant, real, dtype, phase):
    stand_in = StandIn(real)
    with binding.use(stand_in.library()):
        check_all(variant, cases_of("matmul", phase, dtype, [0, 1], thorough=False), stand_in)


@pytest.mark.slow
def test_the_double_answers_as_the_real_library(real):
    """Every attribute, in every size that may be tried: statuses, defaults, and what is read after it was set."""
    created = {
        "MatmulDesc": ((ctypes.c_int32, ctypes.c_int32), (68, 0)),
        "MatrixLayout": ((ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64), (14, 48, 33, 56)),
        "MatmulPreference": ((), ()),
    }
    for kind, (types, given) in created.items():
        answers = []
        for keeps in (Double(), real):
            thing, log = ctypes.c_void_p(), []
            create = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, *types)(keeps.address(f"cublasLt{kind}Create"))
            log.append(create(ctypes.addressof(thing), *given))
            setter = SETTER(keeps.address(f"cublasLt{kind}SetAttribute"))
            for name, (number, size, _) in ATTRIBUTES[kind].items():
                log.append((name, "default", keeps.get(kind, thing.value or 0, number, size)))
                value = ctypes.c_uint64(1)
                for tried in (size, size // 2):
                    status = setter(thing, number, ctypes.addressof(value), tried)
                    log.append((name, tried, status, keeps.get(kind, thing.value or 0, number, size)))
            log.append(("no such attribute", setter(thing, 99, ctypes.addressof(value), 4)))
            answers.append(log)
        assert answers[0] == answers[1], kind
