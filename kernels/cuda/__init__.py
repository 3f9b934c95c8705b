"""CUDA C++ kernels: compiled at first launch by NVRTC, cached, and launched on torch tensors without a copy.

    forward_kernel = Kernel("naive.cu", "layernorm_forward")
    forward_kernel(grid=blocks(B * T, 128), block=128)(out, mean, rstd, x, weight, bias, B * T, C, eps)

The kernel's own parameter list in the .cu says what each argument is:

    T*, const T*            a tensor of the working dtype; all `T*` of one call have the same
    float*, long long*, …   a tensor of that dtype; None is a null pointer
    int, long long, float, bool                             a Python number
    Many<T*, N>, Many<float, N>                             a list of tensors or numbers, passed by value
    TensorMap               an Argument that holds the map's bytes (bench.simulate.tensor_map)

`T` and the keywords fill the template's parameters: `template <typename T, int HS>` with `kernel(grid, block, HS=64)`.
A keyword that the template does not have becomes a `#define`. On CUDA tensors a kernel runs on torch's current stream;
on CPU tensors the simulator runs it, where one was put in with `simulate_with` (bench/simulate).
"""

import operator
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from kernels import Unavailable
from kernels.cuda.signature import Parameter, Signature, read_signature

C_NAMES = {torch.float32: "float", torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}
DTYPE_OF = {
    "float": torch.float32,
    "__nv_bfloat16": torch.bfloat16,
    "long long": torch.int64,
    "int": torch.int32,
    "unsigned char": torch.uint8,
}
SCALAR_TYPES = (int, float, bool)
SCALARS = {"int": "<i", "unsigned": "<I", "long long": "<q", "unsigned long long": "<Q", "float": "<f", "bool": "<?"}
MAX_PARAMETER_BYTES = 32764  # CUDA 12.1 and later, sm_70 and later


@dataclass(frozen=True)
class Strided:
    """A tensor whose kernel is told its strides: its last axis alone must be contiguous."""

    tensor: torch.Tensor


@dataclass(frozen=True)
class Build:
    """What to compile: one instance of one kernel. `name` is the expression NVRTC is asked for."""

    source: Path
    name: str
    defines: tuple[str, ...] = ()

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

    def __str__(self) -> str:
        where = f"{self.build.source.name}: {self.build.name}"
        return f"{where} with grid {self.grid}, block {self.block}, {self.shared} bytes of dynamic shared memory"


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
    properties: Any = torch.cuda.get_device_properties(tensor.device)
    return properties.shared_memory_per_block_optin


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
        self._signature: Signature | None = None
        self._plans: dict[tuple, Any] = {}  # by device, constants and what `flat` tells of the arguments

    @property
    def signature(self) -> Signature:
        if self._signature is None:
            self._signature = read_signature(self.source, self.entry)
        return self._signature

    def __call__(self, grid: int | tuple, block: int | tuple, shared: int = 0, **constants: Any) -> Callable[..., None]:
        """The kernel with its launch geometry: call that with the arguments. `shared` is dynamic, in bytes."""

        def launch(*args: Any) -> None:
            self._launch(_three(grid), _three(block), shared, constants, args)

        return launch

    def _launch(self, grid, block, shared: int, constants: dict[str, Any], args: tuple) -> None:
        """A launch of a kind that is known is packed and handed to the driver; the first is checked, and planned."""
        device, values, kinds = flat(args)
        if device >= 0:
            key = (device, *constants.items(), *kinds)
            plan = self._plans.get(key)
            if plan is not None:
                try:
                    plan.launch(grid, block, shared, values)
                    return
                except struct.error:  # the check says what does not fit
                    pass
        call = self._checked(grid, block, shared, {**self.constants, **constants}, args)
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
        signature = self.signature
        if len(args) != len(signature.parameters):
            wanted = ", ".join(p.name for p in signature.parameters)
            raise TypeError(f"{self.entry} takes {len(signature.parameters)} arguments ({wanted}), got {len(args)}")
        work = working_dtype(self.entry, signature.parameters, args)
        arguments = tuple(_argument(self.entry, p, a, work) for p, a in zip(signature.parameters, args, strict=True))
        size = sum(len(a.value) for a in arguments)
        if size > MAX_PARAMETER_BYTES:
            raise ValueError(f"{self.entry}: {size} bytes of parameters, a kernel takes {MAX_PARAMETER_BYTES}")
        return Launch(self.build(work, constants), grid, block, shared, arguments)

    def build(self, work: torch.dtype | None, constants: dict[str, Any] | None = None) -> Build:
        """The instance of this kernel for a working dtype and constants."""
        constants = {**self.constants, **(constants or {})}
        values = []
        for name in self.signature.template:
            if name == "T":
                if work not in C_NAMES:
                    raise Unavailable(f"CUDA kernels are built for fp32, bf16 and fp16, not {work}")
                values.append(C_NAMES[work])
            elif name in constants:
                values.append(_constant(constants.pop(name)))
            else:
                raise TypeError(f"{self.entry}: the template's {name} is not given: kernel(grid, block, {name}=…)")
        name = f"{self.entry}<{', '.join(values)}>" if values else self.entry
        return Build(self.source, name, tuple(f"{k}={_constant(v)}" for k, v in sorted(constants.items())))


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
        elif kind is list:
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


def working_dtype(entry: str, parameters: tuple[Parameter, ...], args: tuple) -> torch.dtype | None:
    """The dtype of the arguments that the kernel calls `T*`; all must agree. None where there are none."""
    found: dict[torch.dtype, str] = {}
    for p, a in zip(parameters, args, strict=True):
        if p.pointer and p.type == "T":
            for dtype in _dtypes(a):
                found.setdefault(dtype, p.name)
    if len(found) > 1:
        (one, a), (other, b) = list(found.items())[:2]
        raise TypeError(f"{entry}: {a} is {one}, but {b} is {other}; both are T")
    return next(iter(found), None)


def _dtypes(arg: Any) -> list[torch.dtype]:
    if isinstance(arg, Strided):
        return [arg.tensor.dtype]
    if isinstance(arg, torch.Tensor):
        return [arg.dtype]
    if isinstance(arg, Argument):
        return [arg.dtype] if arg.dtype else []
    return [t.dtype for t in arg if isinstance(t, torch.Tensor)] if isinstance(arg, list) else []


def _argument(entry: str, p: Parameter, arg: Any, work: torch.dtype | None) -> Argument:
    where = f"{entry}: argument {p.name}"
    if p.many and not isinstance(arg, Argument):
        if not isinstance(arg, list):
            raise TypeError(f"{where} is Many<…>: a list is wanted, not {type(arg).__name__}")
        parts = [_one(f"{where}[{i}]", p, a, work) for i, a in enumerate(arg)]
        return Argument(
            p.name,
            b"".join(part.value for part in parts),
            tuple(chain.from_iterable(part.tensors for part in parts)),
            p.const,
            format="".join(part.format for part in parts),
        )
    return _one(where, p, arg, work)


def _one(where: str, p: Parameter, arg: Any, work: torch.dtype | None) -> Argument:
    if isinstance(arg, Argument):  # encoded already: a tensor map, or a list that is kept
        _check_dtype(where, p, arg.dtype, work)
        return replace(arg, name=p.name)
    if not p.pointer:
        return Argument(p.name, _number(where, p.type, arg), format=SCALARS[p.type][1:])
    if arg is None:
        return Argument(p.name, struct.pack("<Q", 0), format="Q")
    strided = isinstance(arg, Strided)
    tensor = arg.tensor if strided else arg
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{where} is a pointer: a tensor is wanted, not {type(arg).__name__}")
    _check_dtype(where, p, tensor.dtype, work)
    if not tensor.is_contiguous() and not (strided and tensor.stride(-1) == 1):
        raise ValueError(f"{where} is not contiguous (strides {tensor.stride()}); Strided(tensor) says it need not be")
    return Argument(p.name, struct.pack("<Q", tensor.data_ptr()), (tensor,), p.const, format="Q")


def _check_dtype(where: str, p: Parameter, dtype: torch.dtype | None, work: torch.dtype | None) -> None:
    wanted = work if p.type == "T" else DTYPE_OF.get(p.type)
    # The workspace is bytes; its kernel says what it makes of them.
    if None not in (wanted, dtype) and dtype not in (wanted, torch.uint8):
        raise TypeError(f"{where} is {p.type}*: {wanted} is wanted, not {dtype}")


def _number(where: str, kind: str, value: Any) -> bytes:
    if not isinstance(value, int | float):
        raise TypeError(f"{where} is {kind}: a number is wanted, not {type(value).__name__}")
    if kind not in SCALARS:
        raise TypeError(f"{where}: the launcher knows no parameter type {kind!r} (it knows {', '.join(SCALARS)})")
    if kind != "float" and not isinstance(value, int):
        raise TypeError(f"{where} is {kind}, not {value!r}")
    try:
        return struct.pack(SCALARS[kind], value)
    except struct.error as error:
        raise ValueError(f"{where}: {value} does not fit into {kind}") from error
