"""cuDNN's fused attention, as graphs over the contract's tensors where they lie: nothing is copied on the way.

    ATTENTION = Attention(deterministic=False)                       # a variant's own; its rows tell what ran
    ATTENTION.workspace(shape, phase)                                # builds the plan, which alone knows
    ATTENTION.attend(q, k, v, causal, out, lse, workspace)

By NVIDIA's cudnn-frontend, whose graph is a Python object until it is lowered ("Attention" in its documentation:
sdpa, sdpa_backward). A tensor of a graph is (B, heads, T, HS) with free strides, so packed q, k and v are views, and
stats is the contract's lse. `Card` is the seam: a test puts another engine there (`use`), and all else stays.
"""

import contextlib
import functools
import importlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import torch

from kernels import Unavailable
from kernels.cuda import Kernel, Strided, blocks, place
from kernels.cuda.libraries import WAY_OUT, Calls, is_on_paper
from reference import contract

NAME, PROOF = "cuDNN", "tests/kernels/cuda/test_cudnn.py"
Q, K, V, OUT, LSE, DOUT, DQ, DK, DV = range(1, 10)  # a tensor's number in a graph
GIVEN = {Q: "q", K: "k", V: "v", OUT: "out", LSE: "lse", DOUT: "dout", DQ: "dq", DK: "dk", DV: "dv"}
TENSORS = {"forward": (Q, K, V, OUT, LSE), "backward": (Q, K, V, OUT, LSE, DOUT, DQ, DK, DV)}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FRONTEND_TYPES = {torch.bfloat16: "BFLOAT16", torch.float16: "HALF", torch.float32: "FLOAT"}
ROUND = 256  # bytes that a workspace begins at
HEAD_MULTIPLE, HEAD_MOST = 8, 256
WARPS = 4  # of a block of the single key's kernel

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # sizes, strides, dtype as the contract has them

single_key_kernel = Kernel("common/single_key.cu", "single_key_backward")


class Engine(Protocol):
    """What a graph is made of, and who runs it."""

    frontend: Any  # the module `cudnn`
    on_cpu: bool

    def handle(self, device: int) -> Any:
        """A graph's, and an execution's."""

    def build(self, graph: Any) -> int:
        """Choose and compile a plan; bytes of its workspace. Raises Unavailable where there is none."""

    def name(self, graph: Any) -> str:
        """The chosen plan's."""

    def execute(self, graph: Any, addresses: dict[int, int], workspace: int, device: int) -> None: ...


class Card:
    """cuDNN itself, on a GPU."""

    on_cpu = False

    def __init__(self, frontend: ModuleType):
        self.frontend = frontend
        self.handles: dict[tuple[int, int], Any] = {}  # cuDNN has one for a thread and a device

    def handle(self, device: int) -> Any:
        key = threading.get_ident(), device
        if key not in self.handles:
            with _current(device):
                self.handles[key] = self.frontend.create_handle()
        return self.handles[key]

    def build(self, graph: Any) -> int:
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([self.frontend.heur_mode.A])
            graph.check_support()
            graph.build_plans()
        except self.frontend.cudnnGraphNotSupportedError as error:
            raise Unavailable(f"cuDNN has no plan: {str(error).strip().splitlines()[-1][:80]}") from error
        return graph.get_workspace_size()

    def name(self, graph: Any) -> str:
        return str(graph.get_plan_name_at_index(getattr(graph, "_plan_index", 0)))

    def execute(self, graph: Any, addresses: dict[int, int], workspace: int, device: int) -> None:
        handle = self.handle(device)
        self.frontend.set_stream(handle, _gpu().current_stream(device))
        with _current(device):
            graph.execute(addresses, workspace, handle)


def _gpu() -> ModuleType:
    from kernels.cuda import gpu  # asks for the driver

    return gpu


def _current(device: int) -> contextlib.AbstractContextManager[None]:
    return _gpu()._current(device) if device > 0 else contextlib.nullcontext()


_put: Engine | None = None  # a stand-in


@contextlib.contextmanager
def use(engine: Engine) -> Iterator[None]:
    """Put a stand-in where cuDNN is, as long as the context lasts."""
    global _put
    before, _put = _put, engine
    try:
        yield
    finally:
        _put = before


@functools.cache
def loaded() -> Card:
    """cuDNN of this process. Raises Unavailable where it, or its frontend, is not there."""
    try:
        frontend = importlib.import_module("cudnn")
    except ImportError as error:
        raise Unavailable(f"no cudnn-frontend: {WAY_OUT}") from error
    try:
        frontend.backend_version()
    except Exception as error:  # what it raises without libcudnn is its own
        raise Unavailable(f"no libcudnn for cudnn-frontend: {WAY_OUT}, or a torch that is built with CUDA") from error
    return Card(frontend)


def engine_for(device: int) -> Engine:
    """For tensors on this GPU (-1: the CPU, where only a stand-in is). Raises Unavailable where there is none."""
    if _put is not None:
        return _put
    if device < 0:
        raise Unavailable("cuDNN needs an NVIDIA GPU")
    return loaded()


@dataclass(frozen=True)
class Plan:
    """A graph whose plan is chosen and compiled."""

    phase: str
    graph: Any
    engine: Engine
    workspace: int  # bytes

    def text(self) -> str:
        """`forward eng2_k19=2 workspace=256 (heuristic A)`"""
        name = self.engine.name(self.graph).replace("; ", " ")
        return f"{self.phase} {name} workspace={self.workspace} (heuristic A)"


class Attention(Calls):
    """The graphs of a variant, one for each shape, dtype and layout, built once."""

    def __init__(self, deterministic: bool):
        super().__init__()
        self.deterministic = deterministic
        self.plans: dict[tuple, Plan] = {}

    # --- the contract ---

    def supports(self, shape: dict[str, Any]) -> bool | str:
        HS = shape["HS"]
        if HS % HEAD_MULTIPLE:
            return f"HS is no multiple of {HEAD_MULTIPLE}"
        return HS <= HEAD_MOST or f"HS is above {HEAD_MOST}"

    def workspace(self, shape: dict[str, Any], phase: str) -> int:
        """Bytes of scratch for a call of this shape; its plan is built for that."""
        if _single(phase, shape["T"]):
            return 0
        if _put is None and is_on_paper():
            return ROUND
        layouts = packed(shape, phase)
        device = -1 if _put is not None and _put.on_cpu else _device()
        plan = self._plan(phase, layouts, shape["causal"], device)
        return plan.workspace + ROUND

    def attend(self, q, k, v, causal, out, lse, workspace) -> None:
        """out and lse, from packed q, k and v, on torch's current stream; nothing is allocated."""
        self._run("forward", (q, k, v, out, lse), causal, workspace)

    def gradients(self, dout, q, k, v, out, lse, causal, dq, dk, dv, workspace) -> None:
        """dq, dk and dv, into the slices that they are. A single key has gradients by a kernel of our own."""
        if _single("backward", q.shape[1]):
            self.own("a single key's gradients")
            single_key(dout, q, k, v, out, lse, dq, dk, dv)
        else:
            self._run("backward", (q, k, v, out, lse, dout, dq, dk, dv), causal, workspace)

    # --- graphs ---

    def _run(self, phase: str, tensors: tuple[torch.Tensor, ...], causal: bool, workspace: torch.Tensor) -> None:
        device = place(tensors[0])
        if device < 0 and _put is None and is_on_paper():
            return
        plan = self._plan(phase, tuple((t.shape, t.stride(), t.dtype) for t in tensors), causal, device)
        self.used[id(plan)] = plan
        first = workspace.data_ptr()
        scratch = -(-first // ROUND) * ROUND
        if scratch + plan.workspace > first + workspace.numel():
            raise ValueError(
                f"the plan needs {plan.workspace} bytes of workspace: other strides than {phase}'s of this shape"
            )
        addresses = {uid: t.data_ptr() for uid, t in zip(TENSORS[phase], tensors, strict=True)}
        plan.engine.execute(plan.graph, addresses, scratch, device)

    def _plan(self, phase: str, layouts: tuple[Layout, ...], causal: bool, device: int) -> Plan:
        key = (phase, layouts, causal, device, _put)
        plan = self.plans.get(key)
        if plan is None:
            engine = engine_for(device)
            graph = self._graph(engine, phase, layouts, causal, device)
            plan = self.plans[key] = Plan(phase, graph, engine, engine.build(graph))
        return plan

    def _graph(self, engine: Engine, phase: str, layouts: tuple[Layout, ...], causal: bool, device: int) -> Any:
        cudnn = engine.frontend
        types = {dtype: getattr(cudnn.data_type, name) for dtype, name in FRONTEND_TYPES.items()}
        by_uid = dict(zip(TENSORS[phase], layouts, strict=True))
        graph = cudnn.pygraph(
            handle=engine.handle(device),
            io_data_type=types[by_uid[Q][2]],
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
        )

        def given(uid: int) -> Any:
            dim, stride, dtype = heads_first(by_uid[uid])
            return graph.tensor(name=GIVEN[uid], dim=dim, stride=stride, data_type=types[dtype], uid=uid)

        how: dict[str, Any] = {"attn_scale": by_uid[Q][0][-1] ** -0.5}
        if causal:
            how |= {"diagonal_alignment": cudnn.diagonal_alignment.TOP_LEFT, "diagonal_band_right_bound": 0}
        if phase == "forward":
            made = graph.sdpa(name=phase, q=given(Q), k=given(K), v=given(V), generate_stats=True, **how)
            uids: tuple[int, ...] = OUT, LSE
        else:
            # named as in the library's own signature
            operands = dict(q=given(Q), k=given(K), v=given(V), o=given(OUT), dO=given(DOUT), stats=given(LSE))
            how["use_deterministic_algorithm"] = self.deterministic
            made, uids = graph.sdpa_backward(name=phase, **operands, **how), (DQ, DK, DV)
        for uid, tensor in zip(uids, made, strict=True):
            dim, stride, dtype = heads_first(by_uid[uid])
            tensor.set_output(True).set_dim(dim).set_stride(stride).set_data_type(types[dtype]).set_uid(uid)
        return graph


def _single(phase: str, T: int) -> bool:
    """cuDNN 9.19: "s_q = s_kv = 1 is not supported", in backward."""
    return phase == "backward" and T == 1


def _device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_available() else -1


def heads_first(layout: Layout) -> tuple[list[int], list[int], torch.dtype]:
    """Sizes and strides of (B, T, heads, HS) as cuDNN's (B, heads, T, HS); lse, (B, NH, T), as (B, NH, T, 1)."""
    sizes, strides, dtype = layout
    if len(sizes) == 3:
        return [*sizes, 1], [*strides, 1], dtype
    order = (0, 2, 1, 3)
    return [sizes[i] for i in order], [strides[i] for i in order], dtype


def packed(shape: dict[str, Any], phase: str) -> tuple[Layout, ...]:
    """The layouts of a call's tensors: slices of one packed tensor, and tensors for themselves."""
    spec = contract.pass_of(contract.load("attention"), phase)
    T, HS, P = shape["T"], shape["HS"], shape["NH"] + 2 * shape["NKV"]
    by_name: dict[str, Layout] = {}
    for t in spec.tensors():
        sizes = t.sizes(shape)
        heads = P if t.pack else sizes[2]
        strides = (T * heads * HS, heads * HS, HS, 1) if len(sizes) == 4 else (sizes[1] * T, T, 1)
        by_name[t.name] = torch.Size(sizes), strides, DTYPES[t.dtype_in(shape)]
    return tuple(by_name[GIVEN[uid]] for uid in TENSORS[phase])


def single_key(dout, q, k, v, out, lse, dq, dk, dv) -> None:
    """Attention's gradients for T = 1."""
    B, _, NH, HS = q.shape
    NKV = k.shape[2]
    launch = single_key_kernel(grid=blocks(B * NKV, WARPS), block=WARPS * 32)
    launch(
        *(Strided(dq), Strided(dk), Strided(dv), dout, Strided(q), Strided(k), Strided(v), out, lse),
        *(dq.stride(0), q.stride(0), B, NH, NKV, HS, HS**-0.5),
    )
