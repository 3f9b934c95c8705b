"""CUDA C++ kernels: compiled at first launch by NVRTC, cached, and launched on torch tensors without a copy.

    forward_kernel = Kernel("naive.cu", "layernorm_forward")
    forward_kernel(grid=blocks(B * T, 128), block=128)(out, mean, rstd, x, weight, bias, B * T, C, eps)

The kernel's own parameter list in the .cu says what each argument is:

    T*, const T*            a tensor of the working dtype; all `T*` of one call have the same
    float*, long long*, …   a tensor of that dtype; None is a null pointer
    int, size_t, float, half, bool, an enum, T, …           a Python number; or Loaded(tensor), read on the GPU
    struct                                                  a tuple of its scalars in order, () of an empty one;
                                                            or an Argument
    Many<T*, N>, Many<float, N>                             a list of tensors or numbers, passed by value
    TensorMap               an Argument that holds the map's bytes (kernels.cuda.tensor_map)

Types of tensors and the keywords fill the template's parameters: `template <typename T, int HS>` with
`kernel(grid, block, HS=64)`, whatever T is called; a type that no tensor tells is a keyword too (`Op="Sum<float>"`,
`O=torch.float32`). What has a default need not be given. `Kernel("x.cu", "space::name<float, 64>")` gives all of them.
Of several functions of one name the first that takes the arguments is launched. A keyword that the template does not
have becomes a `#define`. On CUDA tensors a kernel runs on torch's current stream;
on CPU tensors the simulator runs it, where one was put in with `simulate_with` (bench/simulate).
"""

import operator
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from kernels import Unavailable
from kernels.cuda import signature as types
from kernels.cuda.signature import Appended, Parameter, Signature, read_signatures

C_NAMES = {torch.float32: "float", torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}
DTYPE_OF = {
    "float": torch.float32,
    "double": torch.float64,
    "__nv_bfloat16": torch.bfloat16,
    "__half": torch.float16,
    "long long": torch.int64,
    "long": torch.int64,
    "int": torch.int32,
    "short": torch.int16,
    "signed char": torch.int8,
    "unsigned char": torch.uint8,
    "bool": torch.bool,
    # what several elements are read as at once
    **dict.fromkeys(("float2", "float4"), torch.float32),
    **dict.fromkeys(("double2",), torch.float64),
    **dict.fromkeys(("__nv_bfloat162", "nv_bfloat162"), torch.bfloat16),
    **dict.fromkeys(("__half2", "half2"), torch.float16),
    **dict.fromkeys(("int2", "int4"), torch.int32),
}
SCALAR_TYPES = (int, float, bool)
SCALARS = {
    **{"char": "<b", "signed char": "<b", "unsigned char": "<B", "short": "<h", "unsigned short": "<H"},
    **{"int": "<i", "unsigned": "<I", "long": "<q", "unsigned long": "<Q"},
    **{"long long": "<q", "unsigned long long": "<Q", "bool": "<?"},
    # a bf16 has no letter of struct's: `W` stands for the upper half of a float, rounded
    **{"float": "<f", "double": "<d", "__half": "<e", "__nv_bfloat16": "<W"},
}
C_OF = {dtype: name for name, dtype in reversed(DTYPE_OF.items())} | C_NAMES
FLOATING = frozenset(("float", "double", "__half", "__nv_bfloat16"))
MAX_PARAMETER_BYTES = 32764  # CUDA 12.1 and later, sm_70 and later


@dataclass(frozen=True)
class Strided:
    """A tensor whose kernel is told its strides: its last axis alone must be contiguous."""

    tensor: torch.Tensor


@dataclass(frozen=True)
class Loaded:
    """A scalar that a kernel takes by value, and that lies in a tensor of one element: it is read on the GPU when the
    kernel starts, so that nobody waits for it and a captured graph reads it anew.

    expression: what the kernel is given, C++ of the value `x`: Loaded(step, "1 - powf(0.9f, x)").
    """

    tensor: torch.Tensor
    expression: str = "x"


@dataclass(frozen=True)
class Build:
    """What to compile: one instance of one kernel. `name` is the expression NVRTC is asked for.

    appended: what stands behind the source (a kernel that loads scalars and goes on as the source's own).
    """

    source: Path
    name: str
    defines: tuple[str, ...] = ()
    appended: Appended | None = None

    @property
    def label(self) -> str:
        """For people."""
        return self.name.replace("__nv_bfloat16", "bf16")


@dataclass(frozen=True)
class Argument:
    """One argument as the device sees it: the bytes of its value, and the tensors it points to.

    What is kept from call to call (packing.Lists) holds no tensors, but their dtype and the number of their GPU.
    """

    name: str
    value: bytes
    tensors: tuple[torch.Tensor, ...] = ()
    const: bool = False
    dtype: torch.dtype | None = None
    device: int = -1
    format: str = ""  # how `struct` writes the value from what `flat` gives of it; "": its bytes are what is passed


@dataclass(frozen=True)
class Launch:
    """A checked call, ready for the GPU or the simulator."""

    build: Build
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: tuple[Argument, ...]
    cooperative: bool = False  # all blocks are on the GPU together, and may wait for each other (grid.sync())
    cluster: tuple[int, int, int] | None = None  # blocks of a cluster along each axis, where the kernel does not say it

    def __str__(self) -> str:
        where = f"{self.build.source.name}: {self.build.name}{' (cooperative)' if self.cooperative else ''}"
        grid = f"{self.grid}{f' in clusters of {self.cluster}' if self.cluster else ''}"
        return f"{where} with grid {grid}, block {self.block}, {self.shared} bytes of dynamic shared memory"


_simulator: Callable[[Launch], None] | None = None


def simulate_with(run: Callable[[Launch], None] | None) -> None:
    """Have `run` launch kernels whose tensors are on the CPU; None takes it out again."""
    global _simulator
    _simulator = run


TARGET = "sm_90a"  # what kernels on CPU tensors are launched for: the architecture that the simulator runs
MOST_SHARED = {"sm_80": 163 << 10, "sm_90a": 227 << 10, "sm_100a": 227 << 10}  # CUDA C++ Programming Guide, table 24
_target = TARGET


@contextmanager
def targeting(arch: str) -> Iterator[None]:
    """Have launches on CPU tensors ask for what fits `arch` (bench.static compiles for several)."""
    global _target
    _target = arch
    try:
        yield
    finally:
        _target = TARGET


def most_shared(tensor: torch.Tensor) -> int:
    """Bytes of shared memory, static and dynamic, that a block on the tensor's device may have."""
    if not tensor.is_cuda:
        return MOST_SHARED[_target]
    return _most_shared_on(place(tensor))


@cache
def _most_shared_on(device: int) -> int:
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin


SIMULATED_MULTIPROCESSORS = 132  # of an H100 SXM and an H200


def multiprocessors(tensor: torch.Tensor) -> int:
    """How many multiprocessors the tensor's device has: what launchers that fill the GPU once ask."""
    return _multiprocessors_of(place(tensor)) if tensor.is_cuda else SIMULATED_MULTIPROCESSORS


@cache
def _multiprocessors_of(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def blocks(work: int, per_block: int) -> int:
    """How many blocks cover `work` items; at least one."""
    return max(1, -(-work // per_block))


class Kernel:
    """One `__global__` function of a .cu file that lies beside the calling Python file."""

    def __init__(self, source: str, entry: str, **constants: Any):
        caller = sys._getframe(1).f_globals["__file__"]
        self.source = Path(caller).parent / source
        self.entry = entry
        self.constants = constants
        self._signatures: list[Signature] | None = None
        self._resolved: dict[tuple[Build, Signature], tuple[Parameter, ...]] = {}
        self._plans: dict[tuple, Any] = {}  # by device, constants and what `flat` tells of the arguments

    @property
    def signature(self) -> Signature:
        """The first of `signatures`."""
        return self.signatures[0]

    @property
    def signatures(self) -> list[Signature]:
        if self._signatures is None:
            named = {name: _constant(value) for name, value in self.constants.items()}
            try:
                first = read_signatures(self.source, self.entry)
            except LookupError:  # a constant may be what a branch asks for
                first = []
            template = {name for signature in first for name in signature.template}
            defines = {name: value for name, value in named.items() if name not in template}
            self._signatures = read_signatures(self.source, self.entry, defines) if defines or not first else first
        return self._signatures

    def __call__(
        self,
        grid: int | tuple,
        block: int | tuple,
        shared: int = 0,
        cooperative: bool | int = False,
        cluster: int | tuple | None = None,
        **constants: Any,
    ) -> Callable[..., None]:
        """The kernel with its launch geometry: call that with the arguments. `shared` is dynamic, in bytes.

        cooperative: all blocks are on the GPU together, as `grid.sync()` of cooperative groups needs; more than fit at
        once are refused (CUDA C++ Programming Guide, Cooperative Groups, grid synchronization).
        cluster: blocks of a cluster along each axis, of a kernel without __cluster_dims__ (ibidem, Thread Block
        Clusters); up to 16 of them where the GPU has room for that.
        """
        together = None if cluster is None else _three(cluster)

        def launch(*args: Any) -> None:
            self._launch(_three(grid), _three(block), shared, constants, args, bool(cooperative), together)

        return launch

    def _launch(
        self,
        grid,
        block,
        shared: int,
        constants: dict[str, Any],
        args: tuple,
        cooperative: bool,
        cluster: tuple[int, int, int] | None,
    ) -> None:
        """A launch of a kind that is known is packed and handed to the driver; the first is checked, and planned."""
        device, values, kinds = flat(args)
        if device >= 0:
            key = (device, cooperative, cluster, *constants.items(), *kinds)
            plan = self._plans.get(key)
            if plan is not None:
                try:
                    plan.launch(grid, block, shared, values)
                    return
                except struct.error:  # the check says what does not fit
                    pass
        call = self._checked(grid, block, shared, {**self.constants, **constants}, args)
        if cooperative or cluster:
            call = replace(call, cooperative=cooperative, cluster=cluster)
        if device >= 0:
            from kernels.cuda import gpu

            plan = self._plans[key] = gpu.Plan(call, device)
            plan.launch(grid, block, shared, values)
        elif _simulator is not None:
            _simulator(call)
        else:
            raise Unavailable("CUDA kernels need an NVIDIA GPU, or the simulator (--simulate)")

    def _checked(self, grid, block, shared: int, constants: dict[str, Any], args: tuple) -> Launch:
        """The launch with its arguments encoded. Raises TypeError or ValueError for what the kernel cannot take."""
        # the first that has as many parameters says what is wrong, where none takes them
        tried = sorted(self.signatures, key=lambda s: len(s.parameters) != len(args))
        failed: list[TypeError] = []
        for signature in tried:
            try:
                return self._checked_as(signature, grid, block, shared, constants, args)
            except TypeError as error:
                failed.append(error)
        raise failed[0]

    def _checked_as(self, signature: Signature, grid, block, shared: int, constants: dict, args: tuple) -> Launch:
        """The same of one of several functions of this name."""
        if len(args) != len(signature.parameters):
            wanted = ", ".join(p.name for p in signature.parameters)
            raise TypeError(f"{self.entry} takes {len(signature.parameters)} arguments ({wanted}), got {len(args)}")
        dtypes = deduced(self.entry, signature, args)
        build, given = self._instance(signature, dtypes, constants)
        parameters = self._known(signature, build, given)
        arguments = tuple(_argument(self.entry, p, a) for p, a in zip(parameters, args, strict=True))
        size = sum(len(a.value) for a in arguments)
        if size > MAX_PARAMETER_BYTES:
            raise ValueError(f"{self.entry}: {size} bytes of parameters, a kernel takes {MAX_PARAMETER_BYTES}")
        loads = {i: (C_OF[a.tensor.dtype], a.expression) for i, a in enumerate(args) if isinstance(a, Loaded)}
        if loads:
            if fixed := next((p.name for p in signature.parameters if p.grid_constant), ""):
                raise TypeError(
                    f"{self.entry}: nothing can be Loaded where a parameter, {fixed}, is __grid_constant__: the kernel "
                    "becomes a function of another one, and functions have no such parameters"
                )
            expression, name = build.name, f"{signature.name.replace('::', '_')}_loading"
            appended = types.loading(self.source, signature, expression, name, loads, given)
            build = replace(build, name=name, appended=appended)
        return Launch(build, grid, block, shared, arguments)

    def build(self, work: torch.dtype | None, constants: dict[str, Any] | None = None) -> Build:
        """The instance of this kernel for a working dtype and constants."""
        dtypes = {name: work for name in self.signature.types} if work else {}
        return self._instance(self.signature, dtypes, constants or {})[0]

    def _instance(
        self, signature: Signature, dtypes: dict[str, torch.dtype], constants: dict[str, Any]
    ) -> tuple[Build, dict[str, str]]:
        """What is compiled, and its template arguments by name. Raises TypeError where one is not given."""
        constants = {**self.constants, **constants}
        fixed = types.arguments_of(self.entry)
        given: dict[str, str] = dict(zip(signature.template, fixed, strict=False))
        defaults = dict(signature.defaults)
        told = {name for name in signature.template if name in given or name in constants or name in dtypes}
        last = max((i for i, name in enumerate(signature.template) if name in told or name not in defaults), default=-1)
        for name in signature.template[len(fixed) : last + 1]:
            if name in constants:
                given[name] = _constant(constants.pop(name))
            elif name in dtypes:
                if dtypes[name] not in C_NAMES:
                    raise Unavailable(f"CUDA kernels are built for fp32, bf16 and fp16, not {dtypes[name]}")
                given[name] = C_NAMES[dtypes[name]]
            elif name in defaults:
                given[name] = types.substituted(defaults[name], given)
            elif name == "T" and name in signature.types:
                raise Unavailable("CUDA kernels are built for fp32, bf16 and fp16, not None")
            else:
                raise TypeError(f"{self.entry}: the template's {name} is not given: kernel(grid, block, {name}=…)")
        values = [given[name] for name in signature.template if name in given] + fixed[len(signature.template) :]
        expression = signature.expression(values, given)
        return Build(self.source, expression, tuple(f"{k}={_constant(v)}" for k, v in sorted(constants.items()))), given

    def _known(self, signature: Signature, build: Build, given: dict[str, str]) -> tuple[Parameter, ...]:
        """The parameters with types that the launcher knows; the compiler is asked where it does not."""
        key = build, signature
        if key not in self._resolved:
            # a type that a tensor or a keyword gave is one that the launcher knows, or the compiler does
            named = (replace(p, type=types.canonical(given.get(p.type, p.type).split())) for p in signature.parameters)
            parameters = tuple(named)
            if not all(_is_known(p) for p in parameters):
                from kernels.cuda.compiler import parameters_of

                parameters = parameters_of(build.source, build.name, build.defines, parameters)
            self._resolved[key] = parameters
        return self._resolved[key]


def _is_known(p: Parameter) -> bool:
    if p.pointer:
        return p.type in DTYPE_OF or p.type in SCALARS or p.type == "void"
    return p.many or p.type in SCALARS or p.type == "TensorMap"


def _three(size: int | tuple) -> tuple[int, int, int]:
    """A grid or block with all its axes. Raises TypeError for what is none."""
    if type(size) is int:
        return size, 1, 1
    sizes = size if isinstance(size, tuple | list) else (size,)
    if not 1 <= len(sizes) <= 3 or any(not hasattr(n, "__index__") for n in sizes):
        raise TypeError(f"a grid or a block is one to three whole numbers, not {size!r}")
    x, y, z = (*map(operator.index, sizes), 1, 1)[:3]
    return x, y, z


def _constant(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return C_OF[value]
    return str(value).lower() if isinstance(value, bool) else str(value)


def flat(args: Iterable[Any]) -> tuple[int, list, list]:
    """Of a launch's arguments: the number of their GPU (-1: none is on one), the values that are passed, and all that
    tells launches apart whose values are written alike. On the way of every launch."""
    device = -1
    values: list[Any] = []
    kinds: list[Any] = []
    for arg in args:
        kind = type(arg)
        if kind is int or kind is float or kind is bool:
            values.append(arg)
            kinds.append(kind)
        elif arg is None:
            values.append(0)
            kinds.append(None)
        elif kind is list or kind is tuple:
            if arg and type(arg[0]) in SCALAR_TYPES:
                values += arg
                kinds.append((type(arg[0]), len(arg)))
            else:
                there, some, told = flat(arg)
                device = max(device, there)
                values += some
                kinds.append(tuple(told))
        elif kind is Argument:
            values.append(arg.value)
            kinds.append((len(arg.value), arg.dtype))
            device = max(device, arg.device)
        elif kind is Loaded:
            device = max(device, place(arg.tensor))
            values.append(arg.tensor.data_ptr())
            kinds.append((arg.tensor.dtype, arg.expression))
        elif kind is Strided or isinstance(arg, torch.Tensor):
            tensor = arg.tensor if kind is Strided else arg
            if device < 0:
                device = place(tensor)
            values.append(tensor.data_ptr())
            kinds.append(tensor.dtype)
            if not tensor.is_contiguous():
                kinds.append(tensor.stride(-1) if kind is Strided else None)
        else:
            values.append(arg)
            kinds.append(kind)
    return device, values, kinds


def place(tensor: torch.Tensor) -> int:
    """The number of the GPU that a tensor is on; -1 of a CPU."""
    return tensor.get_device()


def deduced(entry: str, signature: Signature, args: tuple) -> dict[str, torch.dtype]:
    """The dtypes of the template's types, by name, told by the tensors that the kernel calls `T*`; all of one name must
    agree. A workspace of bytes tells nothing where other tensors do."""
    found: dict[str, dict[torch.dtype, str]] = {}
    for p, a in zip(signature.parameters, args, strict=True):
        if p.pointer and p.type in signature.types:
            for dtype in _dtypes(a):
                found.setdefault(p.type, {}).setdefault(dtype, p.name)
    for name, dtypes in found.items():
        if len(dtypes) > 1:
            dtypes.pop(torch.uint8, None)
        if len(dtypes) > 1:
            (one, a), (other, b) = list(dtypes.items())[:2]
            raise TypeError(f"{entry}: {a} is {one}, but {b} is {other}; both are {name}")
    return {name: next(iter(dtypes)) for name, dtypes in found.items()}


def _dtypes(arg: Any) -> list[torch.dtype]:
    if isinstance(arg, Strided):
        return [arg.tensor.dtype]
    if isinstance(arg, torch.Tensor):
        return [arg.dtype]
    if isinstance(arg, Argument):
        return [arg.dtype] if arg.dtype else []
    return [t.dtype for t in arg if isinstance(t, torch.Tensor)] if isinstance(arg, list) else []


def _argument(entry: str, p: Parameter, arg: Any) -> Argument:
    where = f"{entry}: argument {p.name}"
    if p.many and not isinstance(arg, Argument):
        if not isinstance(arg, list):
            raise TypeError(f"{where} is Many<…>: a list is wanted, not {type(arg).__name__}")
        parts = [_one(f"{where}[{i}]", p, a) for i, a in enumerate(arg)]
        return Argument(
            p.name,
            b"".join(part.value for part in parts),
            tuple(chain.from_iterable(part.tensors for part in parts)),
            p.const,
            format="".join(part.format for part in parts),
        )
    return _one(where, p, arg)


def _one(where: str, p: Parameter, arg: Any) -> Argument:
    if isinstance(arg, Argument):  # encoded already: a tensor map, a struct, or a list that is kept
        _check_dtype(where, p, arg.dtype)
        if p.size and len(arg.value) != p.size:
            raise TypeError(f"{where} is a struct of {p.size} bytes, not {len(arg.value)}")
        return replace(arg, name=p.name)
    if isinstance(arg, Loaded):
        return _loaded(where, p, arg)
    if not p.pointer:
        if p.type in ("struct", "empty"):
            return _struct(where, p, arg)
        return Argument(p.name, _number(where, p.type, arg), format=SCALARS[p.type][1:])
    if arg is None:
        return Argument(p.name, struct.pack("<Q", 0), format="Q")
    strided = isinstance(arg, Strided)
    tensor = arg.tensor if strided else arg
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{where} is a pointer: a tensor is wanted, not {type(arg).__name__}")
    _check_dtype(where, p, tensor.dtype)
    if not tensor.is_contiguous() and not (strided and tensor.stride(-1) == 1):
        raise ValueError(f"{where} is not contiguous (strides {tensor.stride()}); Strided(tensor) says it need not be")
    return Argument(p.name, struct.pack("<Q", tensor.data_ptr()), (tensor,), p.const, format="Q")


def _loaded(where: str, p: Parameter, arg: Loaded) -> Argument:
    """The address that the value is read at."""
    if p.pointer or p.many or p.type not in SCALARS:
        raise TypeError(f"{where} is {'a pointer' if p.pointer else p.type}: only a scalar can be Loaded")
    if arg.tensor.numel() != 1:
        raise ValueError(f"{where}: Loaded takes a tensor of one element, not of {arg.tensor.numel()}")
    return Argument(p.name, struct.pack("<Q", arg.tensor.data_ptr()), (arg.tensor,), True, format="Q")


def _struct(where: str, p: Parameter, arg: Any) -> Argument:
    """A tuple of scalars and tensors, each at its field's place; () for what has nothing in it (std::true_type)."""
    if p.type == "empty" and arg == ():
        return Argument(p.name, bytes(p.size), format=f"{p.size}x")
    if not p.fields:
        raise TypeError(f"{where} is {p.size} bytes of a struct: an Argument with these bytes is wanted")
    if not isinstance(arg, tuple) or len(arg) != len(p.fields):
        kinds = ", ".join(kind for _, kind in p.fields)
        raise TypeError(f"{where} is a struct: a tuple of {len(p.fields)} is wanted ({kinds}), not {arg!r:.60}")
    layout, value, tensors = "", b"", list[torch.Tensor]()
    for (offset, kind), part in zip(p.fields, arg, strict=True):
        pad = offset - len(value)
        if kind == "pointer":
            one = _one(where, Parameter(p.name, "void", pointer=True), part)
            tensors += one.tensors
        else:
            one = Argument("", _number(where, kind, part), format=SCALARS[kind][1:])
        value += bytes(pad) + one.value
        layout += (f"{pad}x" if pad else "") + one.format
    pad = p.size - len(value)
    return Argument(p.name, value + bytes(pad), tuple(tensors), format=layout + (f"{pad}x" if pad else ""))


def _check_dtype(where: str, p: Parameter, dtype: torch.dtype | None) -> None:
    wanted = DTYPE_OF.get(p.type)
    # The workspace is bytes; its kernel says what it makes of them.
    if None not in (wanted, dtype) and dtype not in (wanted, torch.uint8):
        hint = "; as_int32(tensor, workspace) converts" if (wanted, dtype) == (torch.int32, torch.int64) else ""
        raise TypeError(f"{where} is {p.type}*: {wanted} is wanted, not {dtype}{hint}")


def _number(where: str, kind: str, value: Any) -> bytes:
    if not isinstance(value, int | float):
        raise TypeError(f"{where} is {kind}: a number is wanted, not {type(value).__name__}")
    if kind not in SCALARS:
        raise TypeError(f"{where}: the launcher knows no parameter type {kind!r} (it knows {', '.join(SCALARS)})")
    if kind not in FLOATING and not isinstance(value, int):
        raise TypeError(f"{where} is {kind}, not {value!r}")
    try:
        if kind == "__nv_bfloat16":
            return struct.pack("<H", bf16_bits(value))
        return struct.pack(SCALARS[kind], value)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{where}: {value} does not fit into {kind}") from error


def bf16_bits(value: float) -> int:
    """The nearest bf16, ties to even, as 16 bits."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    if value != value:
        return bits >> 16 | 0x40
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def as_int32(tensor: torch.Tensor, workspace: torch.Tensor, first: int = 0) -> torch.Tensor:
    """The int64 `tensor`, of the same shape in int32, in bytes of the workspace from `first` on; one more launch.

    For kernels that take tokens or targets as `int*`. It needs 4 bytes an element; an element that int32 does not have
    becomes the nearest that it has. Raises ValueError where the workspace is too small.
    """
    n = tensor.numel()
    if workspace.numel() * workspace.element_size() < first + 4 * n:
        raise ValueError(f"as_int32: {n} elements need {first + 4 * n} bytes of workspace")
    out = workspace.view(torch.uint8)[first : first + 4 * n].view(torch.int32).view(tensor.shape)
    _narrow(grid=blocks(n, 256), block=256)(out, tensor, n)
    return out


def zeroed(tensor: torch.Tensor, like: torch.dtype | None = None) -> torch.Tensor:
    """The tensor, contiguous, with zeros in it; one more launch. For kernels that add to what is there.

    like: of a workspace's bytes, the dtype that the kernel sees them as.
    """
    out = tensor if like is None else tensor.view(like)
    flat_bytes = out.view(-1).view(torch.uint8)
    _zero(grid=blocks(flat_bytes.numel(), 256 * ZERO_BYTES), block=256)(flat_bytes, flat_bytes.numel())
    return out


ZERO_BYTES = 16  # a thread, as in zero.cu
_narrow = Kernel("common/narrow.cu", "as_int32")
_zero = Kernel("common/zero.cu", "zero")
