"""Launches of Triton's kernels: what was launched once goes to the driver without Triton's runtime.

    @jit(do_not_specialize=["n"])
    def kernel(…): …

It is `triton.jit`, whose options it takes. Triton binds, specializes and looks up every call, and encodes every
descriptor: 10 to 25 us of the host. Here the first call of a kind goes that way. Kinds are told apart at least as
finely as Triton does (dtypes, addresses at multiples of 16 bytes, numbers that are 1, multiples of 16, or wider than 32
bits, constants and options by type and value), so that calls of one kind have one machine code. Their arguments are
packed as those of kernels.cuda are. Without CuPy, with hooks, with another driver (the simulator's), with scratch
memory or clusters, all calls go Triton's way.
"""

import functools
import operator
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import Unavailable, cuda
from kernels.cuda import Argument, Build, Launch
from kernels.cuda.tensor_map import MAP_BYTES, PROMOTE_TO_128, encoded

ALIGN = 16  # bytes, and what numbers are multiples of, that Triton compiles for
WARP = 32
LEAST_INT, MOST_INT, MOST_LONG = -(2**31), 2**31 - 1, 2**63 - 1
FORMATS = {"i1": "b", "u1": "?", "i8": "b", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I"}
FORMATS |= {"i64": "q", "u64": "Q", "fp32": "f", "f32": "f", "fp64": "d"}
SWIZZLE_BYTES = (0, 32, 64, 128)  # by Triton's number of a swizzle
SCRATCH = 2  # pointers behind all kernels' own arguments, null where a kernel needs no scratch memory


class Described(TensorDescriptor):
    """A descriptor of a tensor on a GPU, whose bytes are made once."""

    device: int
    kind: tuple

    def __init__(self, base: Any, device: int, sizes: Sequence[int], strides: Sequence[int], tile: Sequence[int]):
        super().__init__(base, list(sizes), list(strides), list(tile))
        self.device, self.kind = device, (base.dtype, tuple(tile))
        self.made: dict[tuple, bytes] = {}

    def parameters(self, box: tuple[int, ...], swizzle: int) -> bytes:
        """Its map, sizes and strides, one behind the other."""
        found = self.made.get((box, swizzle))
        if found is None:
            dtype, n = self.base.dtype, len(self.shape)
            strides = tuple(s * dtype.itemsize for s in reversed(self.strides[:-1]))
            sizes, boxes = tuple(reversed(self.shape)), tuple(reversed(box))
            told = encoded(dtype, self.base.data_ptr(), sizes, strides, boxes, swizzle, PROMOTE_TO_128)
            found = self.made[box, swizzle] = told + struct.pack(f"<{n}i{n}q", *self.shape, *self.strides)
        return found


@dataclass(frozen=True)
class Loaded:
    """A kernel that Triton loaded, as kernels.cuda.gpu.Plan asks for one: what it may have of shared memory it has."""

    handle: int
    allowed: int


class Plan:
    """Launches of one kind."""

    def __init__(self, kernel: "Kernel", compiled: Any, device: int, given: int):
        """given: how many arguments are given by position. Raises Unavailable where Triton has to launch."""
        from kernels.cuda import gpu

        metadata, kinds = compiled.metadata, list(compiled.src.signature.values())
        special = (
            (getattr(metadata, "num_ctas", 1) != 1)
            or metadata.launch_cooperative_grid
            or metadata.launch_pdl
            or metadata.global_scratch_size
            or metadata.profile_scratch_size
            or getattr(metadata, "instrumentation_mode", "")
        )
        if special or any(kind != "constexpr" for kind in kinds[given:]):
            raise Unavailable("what Triton's launcher does besides, or defaults that are no constants")
        if any(kernel.params[i].is_constexpr for i in range(given)) or device != driver.active.get_current_device():
            raise Unavailable("constants by position, or a tensor on another GPU")
        self.driver = driver.active
        self.globals = [(where, name, where.get(name)) for (name, _), (_, where) in kernel.used_global_vals.items()]
        passed = [i for i, kind in enumerate(kinds) if kind != "constexpr"]
        self.values = operator.itemgetter(*passed, *passed[:1])  # one more: it gives a tuple of one, too
        self.maps: list[tuple[int, tuple[int, ...], int]] = []  # which of them are descriptors, boxes and swizzles
        facts = iter(getattr(metadata, "tensordesc_meta", None) or [])
        arguments: list[Argument] = []
        for i, at in enumerate(passed):
            kind = kinds[at]
            if not isinstance(kind, str):
                raise Unavailable("a tuple of arguments")
            if kind.startswith("tensordesc"):
                arguments += self._map(i, kind, next(facts, None))
            elif kind.startswith("*"):
                arguments.append(Argument("", bytes(8), format="Q"))
            else:
                letter = FORMATS.get(kind)
                if letter is None:
                    raise Unavailable(f"arguments of {kind}")
                arguments.append(Argument("", bytes(struct.calcsize(f"<{letter}")), format=letter))
        arguments += [Argument("", bytes(8), format="8x")] * SCRATCH
        self.block, self.shared = (WARP * metadata.num_warps, 1, 1), metadata.shared
        build = Build(Path(kernel.fn.__code__.co_filename), metadata.name)
        call = Launch(build, (1, 1, 1), self.block, self.shared, tuple(arguments))
        self.plan = gpu.Plan(call, device, Loaded(compiled.function, self.shared))
        self.compiled = compiled  # whose end unloads the kernel

    def _map(self, i: int, kind: str, facts: dict | None) -> list[Argument]:
        if facts is None or facts["fp4_padded"] or facts.get("is_im2col"):
            raise Unavailable("descriptors without plain maps")
        box = tuple(facts["block_size"])
        self.maps.append((i, box, SWIZZLE_BYTES[facts["swizzle"]]))
        n = len(box)
        sizes = [Argument("", bytes(4), format="0x")] * n + [Argument("", bytes(8), format="0x")] * n
        return [Argument("", bytes(MAP_BYTES), format=f"{MAP_BYTES + 12 * n}s"), *sizes]

    def stands(self) -> bool:
        """Whether Triton would launch the same, and nobody looks on."""
        runtime = knobs.runtime
        if runtime.add_stages_inspection_hook is not None or driver.active is not self.driver:
            return False
        if _hooked(runtime.launch_enter_hook) or _hooked(runtime.launch_exit_hook):
            return False
        return all([where.get(name) is value for where, name, value in self.globals])

    def launch(self, grid: tuple[int, ...], values: list) -> None:
        """Raises struct.error where a value does not fit. Of no programs nothing is launched, as by Triton."""
        passed = list(self.values(values))
        passed.pop()
        for i, box, swizzle in self.maps:
            passed[i] = passed[i].parameters(box, swizzle)
        x, y, z = (*grid, 1, 1)[:3]
        if x * y * z > 0:
            self.plan.launch((x, y, z), self.block, self.shared, passed)


def _hooked(hook: Any) -> Any:
    """A chain's hooks, or the one that was put in its place."""
    return getattr(hook, "calls", hook)


def told(args: tuple) -> tuple[int, list, list]:
    """The number of the GPU (-1: Triton has to launch), the arguments' values, and their kinds."""
    device = -1
    values: list[Any] = []
    kinds: list[Any] = []
    for arg in args:
        kind = type(arg)
        if kind is int:
            wide = not LEAST_INT <= arg <= MOST_INT
            kinds.append(1 if arg == 1 else 2 * (not arg % ALIGN) + 4 * wide + 8 * (arg > MOST_LONG))
            values.append(arg)
        elif kind is float or kind is bool:
            kinds.append(kind)
            values.append(arg)
        elif arg is None:
            kinds.append(None)
            values.append(None)
        elif kind is Described:
            kinds.append(arg.kind)
            values.append(arg)
            device = arg.device
        elif hasattr(arg, "data_ptr"):
            address = arg.data_ptr()
            kinds.append((arg.dtype,) if address % ALIGN else arg.dtype)
            values.append(address)
            if device < 0 and isinstance(arg, torch.Tensor):
                device = cuda.place(arg)
        else:
            return -1, values, kinds
    return device, values, kinds


class Kernel(JITFunction):
    """A function of Triton's that remembers how it was launched."""

    def __init__(self, fn: Callable, **options: Any):
        super().__init__(fn, **options)
        self.planned: dict[tuple, Plan | None] = {}
        self.not_constant = frozenset(p.name for p in self.params if not p.is_constexpr)

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: Any, /, *args: Any, **constants: Any) -> None:
        device, values, kinds = told(args)
        by_name = not self.not_constant.isdisjoint(constants)  # a tensor, it may be, which a key would keep alive
        if device < 0 or by_name or self.pre_run_hooks or type(grid) is not tuple:
            self.run(*args, grid=grid, warmup=False, **constants)
            return
        key = (device, *kinds, *constants.items(), *map(type, constants.values()))
        plan = self.planned.get(key)
        if plan is not None and plan.stands():
            try:
                plan.launch(grid, values)
                return
            except struct.error:  # Triton says what does not fit
                pass
        compiled = self.run(*args, grid=grid, warmup=False, **constants)
        if plan is not None or key not in self.planned:
            try:
                self.planned[key] = Plan(self, compiled, device, len(args))
            except Unavailable:
                self.planned[key] = None


def jit(fn: Callable | None = None, **options: Any) -> Any:
    """`triton.jit` for what is launched."""
    if knobs.runtime.interpret:
        return triton.jit(fn, **options)
    return Kernel(fn, **options) if fn is not None else functools.partial(Kernel, **options)
