"""The tensors of one call: random inputs, and outputs that are poisoned and fenced.

`draw` makes the inputs of a case from its seed. `Arena` owns the memory a variant is called with: every output lies
between guard bands and is filled with NaNs of a fresh bit pattern before each call, so that what was not written, and
what was written outside, is seen afterwards.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import torch

from bench.core.case import DTYPES, Case, Scalar, Value, Values, each, map, scalars
from bench.core.variants import takes_workspace
from reference import contract
from reference.contract import Tensor

BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
# Quiet NaNs: all exponent bits and the first fraction bit set; the remaining fraction bits are free.
QUIET_NAN = {
    torch.float64: (0x7FF8000000000000, 51),
    torch.float32: (0x7FC00000, 22),
    torch.bfloat16: (0x7FC0, 6),
    torch.float16: (0x7E00, 9),
}
GUARD = 4096  # bytes on each side: a page, and a multiple of every vector width
ALIGN = 64


@dataclass
class Fenced:
    """One allocation between two guard bands."""

    raw: torch.Tensor  # uint8, guards included
    view: torch.Tensor  # the payload with its sizes and dtype
    guard: torch.Tensor  # the pattern both bands must still hold

    def broken(self) -> str | None:
        """Evidence of a write outside, or None."""
        end = self.raw.numel() - GUARD
        for name, band in (("before", self.raw[:GUARD]), ("after", self.raw[end:])):
            changed = (band != self.guard).nonzero().flatten()
            if len(changed):
                at = int(changed[-1]) - GUARD if name == "before" else int(changed[0])
                return f"{len(changed)} bytes written {name} the buffer, the nearest at {at:+d}"
        return None


def fenced(sizes: tuple[int, ...], dtype: torch.dtype, device: str, gen: torch.Generator) -> Fenced:
    item = dtype.itemsize
    payload = math.prod(sizes) * item
    # The band begins right behind the last element, so that a write outside by one is seen.
    raw = torch.empty(payload + 2 * GUARD + ALIGN, dtype=torch.uint8, device=device)
    offset = -(raw.data_ptr() + GUARD) % ALIGN
    raw = raw[offset : offset + payload + 2 * GUARD]
    guard = torch.randint(0, 256, (GUARD,), generator=gen, dtype=torch.uint8).to(device)
    raw[:GUARD] = guard
    raw[GUARD + payload :] = guard
    view = raw[GUARD : GUARD + payload].view(dtype).view(sizes)
    return Fenced(raw, view, guard)


@dataclass
class Arena:
    """Memory for the calls of one case: `load` puts inputs in, `reset` poisons outputs, `call` runs a variant."""

    case: Case
    device: str = "cpu"
    workspace_bytes: int | None = None  # None: the variant has no `workspace`
    gen: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(torch.seed()))

    def __post_init__(self) -> None:
        self.spec = contract.pass_of(self.case.module, self.case.phase)
        self.fences: dict[str, Fenced] = {}
        self.inputs = self._allocate(self.spec.inputs)
        self.outputs = self._allocate(self.spec.outputs)
        self.initial: Values = {}
        self.workspace: torch.Tensor | None = None
        if self.workspace_bytes:
            self.workspace = self._fence("workspace", (self.workspace_bytes,), torch.uint8)
        self.poison: dict[torch.dtype, int] = {}

    def _fence(self, name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.fences[name] = fenced(sizes, dtype, self.device, self.gen)
        return self.fences[name].view

    def _allocate(self, tensors: tuple[Tensor, ...]) -> Values:
        made: Values = {}
        shape = self.case.shape
        for pack in {t.pack: None for t in tensors if t.pack}:
            members = [t for t in tensors if t.pack == pack]
            sizes = [list(t.sizes(shape)) for t in members]
            whole = [*sizes[0][:2], sum(s[2] for s in sizes), *sizes[0][3:]]
            packed = self._fence(pack, tuple(whole), DTYPES[members[0].dtype_in(shape)])
            parts = packed.split([s[2] for s in sizes], dim=2)
            made |= dict(zip([t.name for t in members], parts, strict=True))
        for t in tensors:
            if t.pack:
                continue
            if not t.when(shape):
                made[t.name] = None
                continue
            dtype = DTYPES[t.dtype_in(shape)]
            parts = [self._fence(f"{t.name}[{i}]", s, dtype) for i, s in enumerate(t.many_sizes(shape))]
            made[t.name] = list(parts) if t.many else parts[0]
        return made

    def load(self, values: Values) -> None:
        """Copy drawn values in; in-place and accumulated ones are kept aside for `reset`. Addresses stay."""
        for name, buffer in self.inputs.items():
            for into, source in zip(each(buffer), each(values[name]), strict=True):
                into.copy_(source)
        self.initial = {
            n: map(values[n], lambda x: x.to(self.device)) for n in self.outputs if values.get(n) is not None
        }

    def reset(self) -> None:
        """Poison every output and the workspace with fresh NaNs; restore what is read in place or added to."""
        for dtype, (base, bits) in QUIET_NAN.items():
            self.poison[dtype] = base | int(torch.randint(1, 1 << min(bits, 30), (1,), generator=self.gen))
        for name, buffer in self.outputs.items():
            if name in self.initial:
                for into, source in zip(each(buffer), each(self.initial[name]), strict=True):
                    into.copy_(source)
            else:
                for part in each(buffer):
                    _bits(part).fill_(self.poison[part.dtype])
        if self.workspace is not None:
            self.workspace.fill_(0xFF)

    def call(self, function: Callable[..., object]) -> object:
        """One call with the contract's arguments; what the variant returns (it should be nothing)."""
        return function(*self.args(), **self.kwargs())

    def args(self) -> list[Value | Scalar]:
        values: list[Value | Scalar] = [self.inputs[t.name] for t in self.spec.inputs]
        values += scalars(self.case)
        return [*values, self.case.accumulate] if self.spec.accumulates else values

    def kwargs(self) -> Values:
        if self.workspace_bytes is None:
            return dict(self.outputs)
        return {**self.outputs, "workspace": self.workspace}

    def survivors(self) -> dict[str, torch.Tensor]:
        """Of each poisoned output that still holds the poison, where: True or False, in its shape."""
        found = {}
        for name, buffer in self.outputs.items():
            if name in self.initial:
                continue
            for i, p in enumerate(each(buffer)):
                left = _bits(p) == self.poison[p.dtype]
                if left.any():
                    found[f"{name}[{i}]" if isinstance(buffer, list) else name] = left
        return found

    def broken_fences(self) -> dict[str, str]:
        return {name: evidence for name, f in self.fences.items() if (evidence := f.broken())}

    def input_checksums(self) -> dict[str, int]:
        return {name: checksum(buffer) for name, buffer in self.inputs.items()}

    def snapshot(self) -> Values:
        """A copy of all outputs."""
        return {name: map(buffer, torch.clone) for name, buffer in self.outputs.items()}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(BITS[tensor.dtype.itemsize])


def checksum(value: Value) -> int:
    """CRC-32 of the contents, in order."""
    crc = 0
    for tensor in each(value):
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        crc = zlib.crc32(flat.numpy().data, crc)
    return crc


def equal_bits(a: Values, b: Values) -> bool:
    """Bitwise equality of two snapshots, NaNs included."""
    return all(
        torch.equal(_bits(x.contiguous()), _bits(y.contiguous()))
        for name in a
        for x, y in zip(each(a[name]), each(b[name]), strict=True)
    )


def workspace_of(module: ModuleType, case: Case) -> int | None:
    """Bytes of scratch that a variant's phase asks for; None where it takes none."""
    return module.workspace(case.shape, case.phase) if takes_workspace(module, case.phase) else None
