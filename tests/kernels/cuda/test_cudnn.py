"""cuDNN's attention, over a stand-in that computes what the graph says (tests/stand_in).

`make test` describes it to a double of cudnn-frontend; `make test-all` to the real one, which validates and infers
without a driver.
"""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.core import variants
from bench.core.arena import workspace_of
from bench.core.case import Case, cases_of
from bench.gpu.launches import configured_call, launches_of
from bench.trial import attest, ran
from kernels import Unavailable
from kernels.cuda import cudnn_graph as binding
from kernels.cuda import libraries
from tests.stand_in import cudnn as double
from tests.stand_in import packages, proof
from tests.stand_in.cudnn import StandIn

PHASES = ("forward", "backward")
NAMES = ("cuda.cudnn", "cuda.cudnn_deterministic")


def variant_of(name: str, monkeypatch):
    """A variant's module, as if no graph had been built."""
    module = proof.load("attention", name)
    monkeypatch.setattr(module, "ATTENTION", binding.Attention(module.ATTENTION.deterministic))
    return module


@pytest.fixture
def variant(monkeypatch):
    with proof.own_kernels_simulated():
        yield variant_of("cuda.cudnn", monkeypatch)


@pytest.fixture
def there():
    stand_in = StandIn(double.double())
    with binding.use(stand_in):
        yield stand_in


def case_of(phase: str, dtype: str = "bf16", seed: int = 0, **sizes: Any) -> Case:
    return Case("attention", phase, {**sizes, "dtype": dtype}, "a case", seed)


GROUPED: dict[str, Any] = dict(B=2, T=33, NH=4, NKV=2, HS=32, causal=True)
FULL: dict[str, Any] = GROUPED | dict(causal=False)
SINGLE: dict[str, Any] = GROUPED | dict(T=1, HS=48)


def fault(module, case: Case, stand_in: StandIn) -> str:
    """Why a case is not right; "" where all is well."""
    try:
        verdict = proof.proved(module, case, stand_in)
    except (Unavailable, ValueError, KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if verdict.ok else f"{verdict.check}: {verdict.evidence}"


def check_all(module, cases: list[Case], stand_in: StandIn) -> None:
    assert {str(c): told for c in cases if (told := fault(module, c, stand_in))} == {}
    single = sum(c.phase == "backward" and c.shape["T"] == 1 for c in cases)
    assert stand_in.executed == len(cases) - single, "a case that cuDNN did not work out"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_every_dtype_and_ragged_shape_is_right(variant, there, dtype, phase):
    cases = [c for c in cases_of("attention", phase, dtype, [0], thorough=False) if "window" not in c.shape]
    check_all(variant, cases if dtype == "bf16" else [c for c in cases if c.edit is None], there)


def test_windows_are_not_taken(variant, there):
    for phase in PHASES:
        assert fault(variant, case_of(phase, **GROUPED, window=9), there) == "Unavailable: the option window"
    assert there.executed == 0


@pytest.mark.parametrize("edit", [None, "nan_value", "far_below", "outlier_values"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_single_key_has_gradients_by_a_kernel_of_our_own(variant, there, dtype, edit):
    case = replace(case_of("backward", dtype, **SINGLE), edit=edit)
    assert fault(variant, case, there) == "" and there.executed == 0
    _, told = configured_call(variant, partial(proof.called, variant, case, there))
    assert told == "a single key's gradients (own)"


def test_only_one_of_the_two_asks_for_the_deterministic_algorithm(there, monkeypatch):
    for name in NAMES:
        module, before = variant_of(name, monkeypatch), len(there.built)
        assert fault(module, case_of("backward", **GROUPED), there) == ""
        (graph,) = there.built[before:]
        assert graph.nodes[0].params["use_deterministic_algorithm"] is (name == "cuda.cudnn_deterministic")


# --- planted mistakes ---


@dataclass
class Mistake:
    name: str
    plant: Callable[[Any], object] | None  # into a node that was described
    phase: str
    sizes: dict[str, Any]
    swap: tuple[int, int] | None = None
    patched: dict[str, Any] | None = None  # in the binding


def parameter(**values: Any) -> Callable[[Any], object]:
    return lambda node: node.params.update(values)


def without(name: str) -> Callable[[Any], object]:
    return lambda node: node.params.pop(name)


def tensor(port: str, edit: Callable[[Any], None]) -> Callable[[Any], object]:
    return lambda node: edit({**node.inputs, **node.outputs}[port])


def stride(port: str, axis: int, value: int) -> Callable[[Any], object]:
    return tensor(port, lambda t: t.stride.__setitem__(axis, value))


def exchanged(axes: tuple[int, int]) -> Callable[[Any], None]:
    def edit(t: Any) -> None:
        a, b = axes
        t.stride[a], t.stride[b] = t.stride[b], t.stride[a]

    return edit


def copied(of: str, to: str, name: str) -> Callable[[Any], None]:
    def edit(node: Any) -> None:
        ports = {**node.inputs, **node.outputs}
        setattr(ports[to], name, getattr(ports[of], name))

    return edit


HS, PLAIN_ROW = GROUPED["HS"], GROUPED["NH"] * GROUPED["HS"]
MISTAKES = [
    Mistake("no scale", without("attn_scale"), "forward", FULL),
    Mistake("no scale in backward", without("attn_scale"), "backward", FULL),
    Mistake("the scale of another head", parameter(attn_scale=64**-0.5), "forward", FULL),
    Mistake("no mask", without("diagonal_band_right_bound"), "forward", GROUPED),
    Mistake("no mask in backward", without("diagonal_band_right_bound"), "backward", GROUPED),
    Mistake("a mask where there is none", parameter(diagonal_band_right_bound=0), "forward", FULL),
    Mistake("the mask's corner is one to the right", parameter(diagonal_band_right_bound=1), "forward", GROUPED),
    Mistake("the mask hides the diagonal", parameter(diagonal_band_right_bound=-1), "forward", GROUPED),
    Mistake("a parameter that nobody knows", parameter(dropout=0.1), "forward", GROUPED),
    Mistake("q as if it were not packed", stride("q", 2, PLAIN_ROW), "forward", GROUPED),
    Mistake("v as if it were not packed", stride("v", 2, GROUPED["NKV"] * HS), "forward", GROUPED),
    Mistake("heads and rows are exchanged", tensor("k", exchanged((1, 2))), "forward", GROUPED),
    Mistake("out's heads and rows are exchanged", tensor("O", exchanged((1, 2))), "forward", GROUPED),
    Mistake("every sequence is the first", stride("q", 0, 0), "forward", GROUPED),
    Mistake("lse's rows are another's", stride("Stats", 1, 1), "forward", GROUPED),
    Mistake("lse is read at another's rows", stride("stats", 1, 0), "backward", GROUPED),
    Mistake("lse in 16 bits", copied("q", "Stats", "data_type"), "forward", GROUPED),
    Mistake("every query has a key of its own", copied("q", "k", "dim"), "forward", GROUPED),
    Mistake("dq as if it were not packed", stride("dQ", 2, PLAIN_ROW), "backward", GROUPED),
    Mistake("dv's sequences lie too near", stride("dV", 0, HS), "backward", GROUPED),
    Mistake("an output that is not written", tensor("Stats", lambda t: t.set_output(False)), "forward", GROUPED),
    Mistake("two tensors have one number", copied("dK", "dV", "uid"), "backward", GROUPED),
    Mistake("k is v", None, "forward", GROUPED, (binding.K, binding.V)),
    Mistake("q is k", None, "forward", FULL | dict(NKV=4), (binding.Q, binding.K)),
    Mistake("dk is dv", None, "backward", GROUPED, (binding.DK, binding.DV)),
    Mistake("dout is out", None, "backward", GROUPED, (binding.DOUT, binding.OUT)),
    Mistake("the workspace begins where it lies", None, "forward", GROUPED, patched=dict(ROUND=64)),
    Mistake(
        "bf16 is called fp16",
        None,
        "forward",
        GROUPED,
        patched=dict(FRONTEND_TYPES={torch.bfloat16: "HALF", torch.float32: "FLOAT"}),
    ),
    Mistake("a single key's gradients by cuDNN", None, "backward", SINGLE, patched=dict(_single=lambda *_: False)),
    Mistake(
        "a single key's gradients are left out", None, "backward", SINGLE, patched=dict(single_key=lambda *_: None)
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_a_planted_mistake_is_found(variant, there, mistake, monkeypatch):
    for name, value in (mistake.patched or {}).items():
        monkeypatch.setattr(binding, name, value)
    there.plant, there.swap = mistake.plant, mistake.swap
    assert fault(variant, case_of(mistake.phase, **mistake.sizes), there)


def test_the_same_cases_are_right_without_a_mistake(variant, there):
    check_all(variant, list({str(c): c for c in (case_of(m.phase, **m.sizes) for m in MISTAKES)}.values()), there)


def test_a_graph_is_not_taken_for_another_mask_or_layout(variant, there):
    """The second call finds the first one's graph, or one of its own: with a key that forgets, it would be wrong."""
    for phase in PHASES:
        for sizes in (GROUPED, FULL, GROUPED | dict(NKV=4), GROUPED | dict(NH=8), GROUPED | dict(T=17)):
            assert fault(variant, case_of(phase, **sizes), there) == ""
    assert len(there.built) == 2 * 5
    assert fault(variant, case_of("forward", seed=1, **GROUPED), there) == "" and len(there.built) == 2 * 5


# --- planning, launching ---


def test_the_workspace_is_known_before_the_call_which_builds_nothing(variant, there):
    for phase in PHASES:
        case = case_of(phase, **GROUPED)
        assert workspace_of(variant, case) == double.WORKSPACE + binding.ROUND
        built = len(there.built)
        proof.called(variant, case, there)
        assert len(there.built) == built and there.executed == built


def test_too_small_a_workspace_is_refused(variant, there):
    case = case_of("forward", **GROUPED)
    B, T, NH, NKV, HS = (GROUPED[name] for name in ("B", "T", "NH", "NKV", "HS"))
    packed = torch.randn(B, T, NH + 2 * NKV, HS).bfloat16()
    out, lse = torch.empty(B, T, NH, HS, dtype=torch.bfloat16), torch.empty(B, NH, T)
    q, k, v = packed.split([NH, NKV, NKV], dim=2)
    size = variant.workspace(case.shape, "forward")
    for given, ok in ((size, True), (size - binding.ROUND - 1, False)):
        scratch = torch.empty(given, dtype=torch.uint8)
        if ok:
            variant.forward(q, k, v, True, out=out, lse=lse, workspace=scratch)
        else:
            with pytest.raises(ValueError, match="bytes of workspace"):
                variant.forward(q, k, v, True, out=out, lse=lse, workspace=scratch)


@pytest.mark.parametrize(
    ("HS", "says"), [(64, True), (20, "HS is no multiple of 8"), (256, True), (264, "HS is above 256")]
)
def test_what_heads_it_takes(variant, HS, says):
    assert variant.supports(GROUPED | dict(HS=HS, dtype="bf16")) == says


def test_a_call_makes_views_and_nothing_else(variant, there, monkeypatch):
    monkeypatch.setattr(there, "execute", lambda *_: None)  # else the stand-in's own operators are seen
    v = variants.find(proof.VARIANTS, "attention", "cuda.cudnn")
    for phase in PHASES:
        case = case_of(phase, **GROUPED)
        arena = proof.called(variant, case, there)
        returned, seen = attest.attested(partial(getattr(variant, phase), *arena.args(), **arena.kwargs()))
        assert returned is None and attest.judge_calls(v, seen) is None, seen


def test_a_call_costs_the_host_at_most_30_microseconds_beside_the_frontend(variant, there, monkeypatch):
    """Of this thread, the best of some turns."""
    monkeypatch.setattr(there, "execute", lambda *_: None)
    for phase in PHASES:
        arena = proof.called(variant, case_of(phase, **GROUPED), there)
        call = partial(getattr(variant, phase), *arena.args(), **arena.kwargs())
        best = float("inf")
        for _ in range(30):
            start = time.thread_time()
            for _ in range(20):
                call()
            best = min(best, (time.thread_time() - start) / 20)
        assert best < 30e-6, (phase, best)


def test_who_asks_which_kernels_are_launched_needs_no_library(variant):
    assert launches_of(variant, case_of("forward", **GROUPED)) == []
    (use,) = launches_of(variant, case_of("backward", **SINGLE))
    assert use.build.name.startswith("single_key_backward<")
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match="NVIDIA GPU"):
            variant.workspace(GROUPED | dict(dtype="bf16"), "forward")


def frontend(log: list[str]) -> SimpleNamespace:
    """What `Card` asks of the module cudnn, written down."""

    class NotSupported(Exception):
        pass

    class Graph(double.Graph):
        _plan_index = 0

        def __init__(self, **values: Any):
            log.append(f"graph of {values['handle']}")
            super().__init__(**values)

        def validate(self) -> None:
            log.append("validate")
            super().validate()

        def build_operation_graph(self) -> None:
            log.append("build_operation_graph")

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def told(*args: Any) -> int:
                log.append(name)
                if name == "check_support" and log.count("refuse"):
                    raise NotSupported("a line\nno engine for this head")
                return 4096

            return told

        def execute(self, addresses: dict[int, int], workspace: int, handle: str) -> None:
            assert all(type(a) is int for a in addresses.values())
            log.append(f"execute {sorted(addresses)} by {handle}")

        def get_plan_name_at_index(self, index: int) -> str:
            return f"eng{index}; a knob"

    return SimpleNamespace(
        data_type=double.DataType,
        diagonal_alignment=double.Alignment,
        pygraph=Graph,
        heur_mode=SimpleNamespace(A="A"),
        cudnnGraphNotSupportedError=NotSupported,
        create_handle=lambda: "a handle",
        set_stream=lambda handle, stream: log.append(f"stream {stream:#x} of {handle}"),
    )


def test_the_card_is_asked_in_this_order_on_torchs_current_stream(variant, monkeypatch):
    log: list[str] = []
    card = binding.Card(frontend(log))  # type: ignore[arg-type]
    monkeypatch.setattr(card, "on_cpu", True, raising=False)
    monkeypatch.setattr(binding, "_gpu", lambda: SimpleNamespace(current_stream=lambda device: 0x5000))
    case = case_of("forward", **GROUPED)
    with binding.use(card):
        spare: Any = SimpleNamespace(kept=[], memory=[])
        _, told = configured_call(variant, partial(proof.called, variant, case, spare))
    build = ["validate", "build_operation_graph", "create_execution_plans", "check_support", "build_plans"]
    uids = sorted(binding.TENSORS["forward"])
    run = ["stream 0x5000 of a handle", f"execute {uids} by a handle"]
    assert log == ["graph of a handle", *build, "get_workspace_size", *run]
    assert told == "forward eng0 a knob workspace=4096 (heuristic A)"
    log[:] = ["refuse"]
    variant.ATTENTION.plans.clear()
    with binding.use(card), pytest.raises(Unavailable, match="no engine for this head"):
        proof.called(variant, case, spare)


def test_the_librarys_kernels_and_our_own_may_run_and_no_others():
    v = variants.find(proof.VARIANTS, "attention", "cuda.cudnn")
    theirs = [
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x128_4x1x1_kernel0_0",
        "void cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16>(float*)",
        "void single_key_backward<__nv_bfloat16>(__nv_bfloat16*)",
    ]
    assert ran.foreign(v, theirs) == []
    others = ["void at::native::vectorized_elementwise_kernel<4>(int)", "attention_softmax"]
    assert ran.foreign(v, others) == sorted(map(ran.short, others))


def test_what_is_missing_is_said_with_the_way_out(monkeypatch):
    for name in NAMES:
        v = variants.find(proof.VARIANTS, "attention", name)
        assert "needs an NVIDIA GPU" in (variants.unavailable(v, "cpu", "bf16") or "")

    def absent(name: str) -> SimpleNamespace:
        if name == "cudnn":
            raise ImportError(name)
        return importlib.import_module(name)  # type: ignore[return-value]

    def without_library(name: str) -> SimpleNamespace:
        return SimpleNamespace(backend_version=partial(int, "no symbol"))

    for load, told in ((absent, "no cudnn-frontend: pip install"), (without_library, "no libcudnn for")):
        monkeypatch.setattr(binding, "importlib", SimpleNamespace(import_module=load))
        binding.loaded.cache_clear()
        libraries.missing.cache_clear()
        assert told in (libraries.missing("cudnn", "cuda") or "")
    libraries.missing.cache_clear()
    binding.loaded.cache_clear()


# --- the real frontend ---

REAL = """
import sys
from bench.core.case import cases_of
from kernels.cuda import cudnn_graph
from tests.kernels.cuda.test_cudnn import NAMES, PHASES, check_all
from tests.stand_in import proof
from tests.stand_in.cudnn import StandIn
import cudnn
assert cudnn.backend_version() == 91900
with proof.own_kernels_simulated():
    for name in NAMES:
        for dtype in ("bf16", "fp16"):
            for phase in PHASES:
                stand_in = StandIn(cudnn)
                with cudnn_graph.use(stand_in):
                    found = cases_of("attention", phase, dtype, [0, 1], thorough=False)
                    cases = [c for c in found if "window" not in c.shape]
                    check_all(proof.load("attention", name), cases, stand_in)
                print(name, dtype, phase, len(cases))
"""


def in_a_process_with_the_real_one(code: str) -> str:
    folders = [packages.folder(name) for name in ("nvidia-cudnn-frontend", "nvidia-cudnn-cu13")]
    paths = {
        "PYTHONPATH": os.pathsep.join([str(folders[0]), os.environ.get("PYTHONPATH", "")]),
        "LD_LIBRARY_PATH": str(folders[1] / "nvidia" / "cudnn" / "lib"),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=os.environ | paths | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_real_frontends_graph_says_the_same():
    assert len(in_a_process_with_the_real_one(REAL).splitlines()) == 2 * 2 * 2


SAME = """
import torch
from kernels.cuda import cudnn_graph
from tests.kernels.cuda.test_cudnn import GROUPED, PHASES
from tests.stand_in import cudnn as double
import cudnn

def told(frontend, phase):
    made, engine = [], double.StandIn(frontend)
    engine.build, build = lambda graph: (made.append(graph), build(graph))[1], engine.build
    with cudnn_graph.use(engine):
        cudnn_graph.Attention(True).workspace(GROUPED | dict(dtype="bf16"), phase)
    (node,) = made[0].nodes
    tensors = {p: (t.uid, list(t.dim), list(t.stride), t.data_type.name, t.is_virtual)
               for p, t in (*node.inputs.items(), *node.outputs.items())}
    how = {n: getattr(v, "name", v) for n, v in node.params.items()}
    return node.node_type.name, tensors, how

for phase in PHASES:
    assert told(cudnn, phase) == told(double.double(), phase), (told(cudnn, phase), told(double.double(), phase))
    print(phase)
"""


@pytest.mark.slow
def test_the_double_keeps_what_the_real_frontend_keeps():
    assert in_a_process_with_the_real_one(SAME).split() == list(PHASES)
