"""cuBLASLt's matrix products with an epilogue: planned once for a shape, then two pointers to set and one call.

    PRODUCTS = Products()                                              # a variant's own; its rows tell what ran
    PRODUCTS.run(OUT, BIAS, weight, x, out, workspace, bias=bias)      # False: the library has no such product

Its C API by ctypes, on the library that torch's CUDA build brings (cuBLAS 13.1 documentation, "Using the cuBLASLt API";
numbers are cublasLt.h's). A row-major (rows, columns) tensor is a column-major matrix of columns x rows, so all
products are written down transposed: d^T = op(a^T) op(b^T). `Library` is the seam: a test puts one of other functions
there (`use`), and all else stays.
"""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch

from kernels import Unavailable
from kernels.cuda import place
from kernels.cuda.libraries import WAY_OUT, Calls, is_on_paper, is_untuned, package_folders
from reference import contract

NAME, PROOF = "cuBLASLt", "tests/kernels/cuda/test_cublaslt.py"
i32, u32, u64, size_t, pointer = ctypes.c_int32, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p

TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}  # cudaDataType_t
COMPUTE_32F, SCALE_32F = 68, 0  # cublasComputeType_t, cudaDataType_t: sums and factors are fp32; TF32 is another type
DEFAULT, BIAS, GELU_AUX_BIAS, DGELU, BGRADB = 1, 4, 164, 192, 512  # cublasLtEpilogue_t
EPILOGUES = {DEFAULT: "", BIAS: "+bias", GELU_AUX_BIAS: "+bias+gelu", DGELU: "+dgelu", BGRADB: "+dbias"}
AUX = 128  # the bit of an epilogue that has an auxiliary matrix: GELU's input
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_LD = 3, 4, 7, 8, 11, 12  # of a product's description
MOST_WORKSPACE, REDUCTIONS, ALIGNMENT_A = 1, 3, 5  # of a preference; B, C and D follow A
IN_COMPUTE_TYPE = 2  # a sum in parts is added up in fp32, and in an order; not in place, by whoever comes first
CONFIGURED = {"algorithm": 0, "tile": 1, "split": 2, "stages": 6, "cluster": 8}  # of an algorithm, for people
STATUS = {1: "not initialized", 3: "out of memory", 7: "invalid value", 8: "architecture mismatch"}
STATUS |= {11: "mapping error", 13: "execution failed", 14: "internal error", 15: "not supported"}
NOT_SUPPORTED = 15

WORKSPACE = 32 << 20  # bytes that algorithms may use: cuBLAS's own default on Hopper
ROUND = 256  # bytes that a workspace begins at; the harness's begin at 64
ALIGNED = 16  # bytes: more is of no use to an algorithm
AUX_MULTIPLE = 8  # elements that the auxiliary matrix's leading dimension must be a multiple of
CANDIDATES = 8  # algorithms that the heuristic is asked for
WARM_UP, TIMED, ROUNDS = 2, 5, 3  # calls that measure an algorithm


class CublasLtError(RuntimeError):
    """The library refused what must work; the message names the function and its status."""


class Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm, what it needs, and whether it works at all."""

    _fields_ = [
        ("algorithm", u64 * 8),
        ("workspace", size_t),
        ("state", i32),
        ("waves", ctypes.c_float),
        ("reserved", i32 * 4),
    ]


FUNCTIONS: dict[str, tuple[type, ...]] = {
    "cublasLtCreate": (pointer,),
    "cublasLtMatmulDescCreate": (pointer, i32, i32),
    "cublasLtMatmulDescSetAttribute": (pointer, i32, pointer, size_t),
    "cublasLtMatrixLayoutCreate": (pointer, i32, u64, u64, ctypes.c_int64),
    "cublasLtMatmulPreferenceCreate": (pointer,),
    "cublasLtMatmulPreferenceSetAttribute": (pointer, i32, pointer, size_t),
    "cublasLtMatmulPreferenceDestroy": (pointer,),
    "cublasLtMatmulAlgoGetHeuristic": (*(pointer,) * 7, i32, pointer, pointer),
    "cublasLtMatmulAlgoConfigGetAttribute": (pointer, i32, pointer, size_t, pointer),
    "cublasLtMatmul": (*(pointer,) * 14, size_t, pointer),
}


class Library:
    """The functions that are used, by their addresses. `on_cpu`: a stand-in's, which works on the CPU's tensors."""

    def __init__(self, address: Callable[[str], int], on_cpu: bool = False):
        self.on_cpu = on_cpu
        self.functions = {n: ctypes.CFUNCTYPE(i32, *types)(address(n)) for n, types in FUNCTIONS.items()}
        self.set_attribute = self.functions["cublasLtMatmulDescSetAttribute"]
        self.matmul = self.functions["cublasLtMatmul"]
        self.handles: dict[int, int] = {}  # by device

    def call(self, name: str, *args: Any) -> int:
        """A function's status, 0 or not supported. Raises CublasLtError for any other."""
        status = self.functions[name](*args)
        if status not in (0, NOT_SUPPORTED):
            raise _failed(name, status)
        return status

    def create(self, name: str, *args: Any) -> int:
        made = pointer()
        if self.call(name, ctypes.addressof(made), *args) or not made.value:
            raise _failed(name, NOT_SUPPORTED)
        return made.value

    def set(self, name: str, thing: int, attribute: int, value: Any) -> None:
        if self.call(name, thing, attribute, ctypes.addressof(value), ctypes.sizeof(value)):
            raise _failed(f"{name} {attribute}", NOT_SUPPORTED)

    def handle(self, device: int) -> int:
        if device not in self.handles:
            with _current(device):
                self.handles[device] = self.create("cublasLtCreate")
        return self.handles[device]


def _failed(name: str, status: int) -> CublasLtError:
    return CublasLtError(f"{name}: status {status} ({STATUS.get(status, 'unknown')})")


_put: Library | None = None  # a stand-in


@contextlib.contextmanager
def use(library: Library) -> Iterator[None]:
    """Put a stand-in where the library is, as long as the context lasts."""
    global _put
    before, _put = _put, library
    try:
        yield
    finally:
        _put = before


@functools.cache
def loaded() -> Library:
    """The library of this process. Raises Unavailable where there is none."""
    name = f"libcublasLt.so.{(torch.version.cuda or '13').partition('.')[0]}"
    for path in (name, *(str(folder / name) for folder in package_folders())):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        return Library(functools.partial(address_in, library))
    raise Unavailable(f"no {name}: {WAY_OUT}, or a torch that is built with CUDA")


def address_in(library: ctypes.CDLL, function: str) -> int:
    return ctypes.cast(getattr(library, function), pointer).value or 0


def library_for(device: int) -> Library:
    """For tensors on this GPU (-1: the CPU, where only a stand-in is). Raises Unavailable where there is none."""
    if _put is not None:
        return _put
    if device < 0:
        raise Unavailable("cuBLASLt needs an NVIDIA GPU")
    return loaded()


def _gpu() -> ModuleType:
    from kernels.cuda import gpu  # asks for the driver

    return gpu


def _current(device: int) -> contextlib.AbstractContextManager[None]:
    """The device's context is this thread's: the library works in the runtime's, which is the first GPU's by itself."""
    return _gpu()._current(device) if device > 0 else contextlib.nullcontext()


class Product(NamedTuple):
    """Which two matrices are multiplied: d (rows, columns) of the row-major tensors a and b, as op(a) op(b) of their
    column-major views."""

    name: str
    transposes: tuple[bool, bool]


# out^T (N, M) = weight (N, K) x^T;  dx^T (K, M) = weight^T (K, N) dout^T;  dweight^T (K, N) = x^T (K, M) dout
OUT, DX, DWEIGHT = Product("out", (True, False)), Product("dx", (False, False)), Product("dweight", (False, True))

Clock = Callable[[Callable[[], object]], float]  # milliseconds of a launch
Key = tuple[Product, int, torch.Size, torch.Size, torch.dtype, int, int, Library | None]


@dataclass
class Plan:
    """A product's description and its algorithms; only pointers differ from call to call."""

    library: Library | None  # None: on paper, or what is forbidden
    product: Product
    epilogue: int
    description: int = 0
    layouts: tuple[int, int, int] = (0, 0, 0)
    candidates: list[Found] = field(default_factory=list)
    best: int = 0  # of the candidates
    measured: bool = False
    why_not: str = ""  # where there are none

    def drop(self) -> None:
        """The algorithm does not run here, although it was found: the next most promising one is the best."""
        self.candidates.pop(self.best)
        self.best = 0
        self.why_not = "" if self.candidates else "no algorithm runs"

    def text(self) -> str:
        """`out+bias algorithm=66 tile=20 stages=35 split=1 (measured, 2 of 8)`"""
        name = self.product.name + EPILOGUES[self.epilogue]
        if not self.candidates:
            return f"{name} not fused: {self.why_not} (own)"
        told = " ".join(f"{word}={self._configured(number)}" for word, number in CONFIGURED.items())
        how = "measured" if self.measured else "heuristic"
        return f"{name} {told} ({how}, {self.best + 1} of {len(self.candidates)})"

    def _configured(self, attribute: int) -> str:
        value, written = u64(), size_t()
        for size in (4, 2) if self.library else ():  # as most are, and as clusters are
            at = ctypes.addressof(self.candidates[self.best].algorithm)
            arguments = at, attribute, ctypes.addressof(value), size, ctypes.addressof(written)
            if self.library and not self.library.functions["cublasLtMatmulAlgoConfigGetAttribute"](*arguments):
                return str(value.value)
        return "?"


ONE, ZERO = ctypes.c_float(1), ctypes.c_float(0)  # alpha; beta: read by the library when it launches
BETA = {False: ctypes.addressof(ZERO), True: ctypes.addressof(ONE)}
ALPHA = ctypes.addressof(ONE)
_one_at_a_time = threading.Lock()  # a description's pointers are a call's own until it is launched
_bias, _aux = u64(), u64()
_BIAS, _AUX = ctypes.addressof(_bias), ctypes.addressof(_aux)


class Products(Calls):
    """The products of a variant, each planned once."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: dict[Key, Plan] = {}
        self.milliseconds: Clock | None = None  # while algorithms are measured

    # --- a call ---

    def run(
        self,
        product: Product,
        epilogue: int,
        a: torch.Tensor,
        b: torch.Tensor,
        d: torch.Tensor,
        workspace: torch.Tensor,
        bias: torch.Tensor | None = None,
        aux: torch.Tensor | None = None,
        add: bool = False,
    ) -> bool:
        """d = epilogue(op(a) op(b)), or that added to d, on torch's current stream; nothing is allocated.

        bias: as long as d's columns; for BGRADB it is written, the sum of b's rows. aux: of d's shape. workspace: of
        WORKSPACE + ROUND bytes at least. False, and nothing done, where the library does not have it. Raises ValueError
        for a tensor that is not contiguous, CublasLtError.
        """
        for t in (a, b, d, bias, aux):
            if t is not None and not t.is_contiguous():
                raise ValueError(f"{product.name}: a tensor is not contiguous (strides {t.stride()})")
        pa, pb, pd = a.data_ptr(), b.data_ptr(), d.data_ptr()
        pbias = 0 if bias is None else bias.data_ptr()
        paux = 0 if aux is None else aux.data_ptr()
        together, device = pa | pb | pd | pbias | paux | ALIGNED, place(d)
        key = (product, epilogue, a.shape, b.shape, d.dtype, together & -together, device, _put)
        plan = self.plans.get(key)
        if plan is None:
            plan = self._planned(key, d.shape, pbias, paux)
        self.used[id(plan)] = plan
        if not plan.candidates:
            return False
        if plan.library is None:  # on paper
            return True
        scratch = -(-workspace.data_ptr() // ROUND) * ROUND
        launch = functools.partial(_launch, plan, pa, pb, pd, pbias, paux, add, scratch, device)
        if self.milliseconds and not plan.measured:
            _measure(plan, launch, self.milliseconds)
        while plan.candidates:
            if not launch():
                return True
            plan.drop()
        return False

    # --- planning ---

    def _planned(self, key: Key, d: torch.Size, pbias: int, paux: int) -> Plan:
        product, epilogue, a, b, dtype, alignment, device, _ = key
        plan = Plan(None, product, epilogue, why_not=forbidden(epilogue, d[1]))
        if not plan.why_not and device < 0 and _put is None and is_on_paper():
            plan.candidates = [Found()]
            return plan
        if not plan.why_not:
            plan.library = library_for(device)
            _describe(plan, plan.library, (a, b, d), dtype, pbias, paux)
            _search(plan, plan.library, alignment, device)
        self.plans[key] = plan
        return plan

    # --- preparing ---

    def prepare(
        self,
        layer: str,
        shape: dict[str, Any],
        phase: str,
        function: Callable[..., None],
        workspace: int,
        milliseconds: Clock | None = None,
    ) -> None:
        """Plan all that a call of this shape needs and, on a GPU, measure the heuristic's algorithms on outputs of
        their own: it knows neither the other operands in the cache nor that d is added to."""
        if _put is None and not torch.cuda.is_available():
            return
        device = "cpu" if _put is not None and _put.on_cpu else "cuda"
        try:
            args, kwargs = drawn(layer, shape, phase, device, workspace)
        except torch.OutOfMemoryError:  # a model that fills the card: its first call plans, and the heuristic decides
            return
        clock = milliseconds or (on_the_card if device == "cuda" else None)
        self.milliseconds = None if is_untuned() else clock
        try:
            function(*args, **kwargs)
        finally:
            self.milliseconds = None
        if device == "cuda":
            torch.cuda.synchronize()
            del args, kwargs
            torch.cuda.empty_cache()  # others need it


def _launch(plan: Plan, pa: int, pb: int, pd: int, pbias: int, paux: int, add: bool, scratch: int, device: int) -> int:
    """Set two pointers, and launch on torch's current stream. Not 0: not supported, and nothing was launched."""
    library, (a, b, d), description = plan.library, plan.layouts, plan.description
    assert library
    found = plan.candidates[plan.best]
    stream = _gpu().current_stream(device) if device >= 0 else 0
    handle = library.handles.get(device) or library.handle(device)
    with _one_at_a_time, _current(device):
        if pbias:
            _bias.value = pbias
            library.set_attribute(description, BIAS_POINTER, _BIAS, 8)
        if paux:
            _aux.value = paux
            library.set_attribute(description, AUX_POINTER, _AUX, 8)
        status = library.matmul(
            *(handle, description, ALPHA, pa, a, pb, b, BETA[add], pd, d, pd, d),
            *(ctypes.addressof(found), scratch, found.workspace, stream),
        )
    if status not in (0, NOT_SUPPORTED):
        raise _failed("cublasLtMatmul", status)
    return status


def _describe(
    plan: Plan, library: Library, sizes: tuple[torch.Size, ...], dtype: torch.dtype, pbias: int, paux: int
) -> None:
    set_to = "cublasLtMatmulDescSetAttribute"
    plan.description = made = library.create("cublasLtMatmulDescCreate", COMPUTE_32F, SCALE_32F)
    library.set(set_to, made, TRANSA, i32(plan.product.transposes[0]))
    library.set(set_to, made, TRANSB, i32(plan.product.transposes[1]))
    library.set(set_to, made, EPILOGUE, u32(plan.epilogue))
    if plan.epilogue & AUX:
        library.set(set_to, made, AUX_LD, ctypes.c_int64(sizes[2][1]))
    for attribute, address in ((BIAS_POINTER, pbias), (AUX_POINTER, paux)):
        if address:  # the search looks at its alignment
            library.set(set_to, made, attribute, u64(address))
    layouts = [
        library.create("cublasLtMatrixLayoutCreate", TYPES[dtype], columns, rows, columns) for rows, columns in sizes
    ]
    plan.layouts = layouts[0], layouts[1], layouts[2]


def _search(plan: Plan, library: Library, alignment: int, device: int) -> None:
    """The heuristic's algorithms, the most promising first."""
    a, b, d = plan.layouts
    preference = library.create("cublasLtMatmulPreferenceCreate")
    set_to = "cublasLtMatmulPreferenceSetAttribute"
    library.set(set_to, preference, MOST_WORKSPACE, u64(WORKSPACE))
    library.set(set_to, preference, REDUCTIONS, u32(IN_COMPUTE_TYPE))
    for matrix in range(4):
        library.set(set_to, preference, ALIGNMENT_A + matrix, u32(alignment))
    found, count = (Found * CANDIDATES)(), ctypes.c_int()
    with _current(device):
        status = library.call(
            "cublasLtMatmulAlgoGetHeuristic",
            *(library.handle(device), plan.description, a, b, d, d, preference, CANDIDATES),
            *(ctypes.addressof(found), ctypes.addressof(count)),
        )
    library.call("cublasLtMatmulPreferenceDestroy", preference)
    if not status:
        plan.candidates = [f for f in found[: count.value] if f.state == 0 and f.workspace <= WORKSPACE]
    if not plan.candidates:
        plan.why_not = "the library has no algorithm"


def _measure(plan: Plan, launch: Callable[[], int], milliseconds: Clock) -> None:
    """Put the fastest first; what does not run is left out."""
    times: list[tuple[float, int]] = []
    for candidate in reversed(range(len(plan.candidates))):
        plan.best = candidate
        if launch():
            plan.drop()
            times = [(time, i - 1) for time, i in times]
        else:
            times.append((milliseconds(launch), candidate))
    plan.best = min(times, default=(0.0, 0))[1]
    plan.measured = bool(times)


def forbidden(epilogue: int, leading: int) -> str:
    """What cublasLt.h forbids of an epilogue; "" where it may be asked for."""
    if epilogue & AUX and leading % AUX_MULTIPLE:
        return f"rows of {leading} elements, no multiple of {AUX_MULTIPLE}"
    return ""


def on_the_card(launch: Callable[[], object]) -> float:
    """Milliseconds of a launch on the GPU, the best of a few rounds."""
    for _ in range(WARM_UP):
        launch()
    best = float("inf")
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(TIMED):
            launch()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / TIMED)
    return best


def drawn(layer: str, shape: dict[str, Any], phase: str, device: str, workspace: int) -> tuple[list[Any], dict]:
    """Arguments of a call at a shape, its tensors drawn from N(0, 1): (positional, keyword)."""
    spec = contract.pass_of(contract.load(layer), phase)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

    def value(t: contract.Tensor) -> torch.Tensor | None:
        if not t.when(shape):
            return None
        return torch.empty(t.sizes(shape), dtype=dtypes[t.dtype_in(shape)], device=device).normal_()

    positional: list[Any] = [value(t) for t in spec.inputs] + spec.scalars_in(shape)
    if spec.accumulates:
        positional.append(bool(shape.get("accumulate")))
    keyword = {t.name: value(t) for t in spec.outputs}
    keyword["workspace"] = torch.empty(workspace, dtype=torch.uint8, device=device)
    return positional, keyword
