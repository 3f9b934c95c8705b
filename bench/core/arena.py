"""The memory of one call: inputs, and outputs that are poisoned, all between guard bands.

A variant is called on memory that the harness owns. Every output is filled with one bit pattern before each call, a
fresh one: with a NaN, or, in other calls, with a large number, for a maximum passes over a NaN, and who looks for one
knows that nothing was there (whole numbers with one that is no answer). So what was not written, and what was written
outside, is seen afterwards. Guard bands and poison follow from a seed: what the variant's process hands back
(`hand_back`, raw, bands included) the judge's lays out as an arena of its own (`memory`) and looks at there.
"""

import ctypes
import itertools
import math
import mmap
import random
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import torch

from bench.core import contents
from bench.core.case import DTYPES, Case, Scalar, Value, Values, bits, each, map, scalars
from bench.core.contents import Change
from bench.core.shared import ALIGN, aligned
from bench.core.variants import need_options, need_support, takes_workspace
from reference import contract
from reference.contract import Tensor

# Quiet NaNs: all exponent bits and the first fraction bit set; the remaining fraction bits are free.
QUIET_NAN = {
    torch.float64: (0x7FF8000000000000, 51),
    torch.float32: (0x7FC00000, 22),
    torch.bfloat16: (0x7FC0, 6),
    torch.float16: (0x7E00, 9),
}
# Large numbers: the largest exponent that is one's; the fraction bits are free.
LARGE = {
    torch.float64: (0x7FE0000000000000, 52),
    torch.float32: (0x7F000000, 23),
    torch.bfloat16: (0x7F00, 7),
    torch.float16: (0x7800, 10),
}
# A byte of a workspace: all of it are NaNs and -1, or numbers from 1e16 on in fp32, and in bf16.
NO_NUMBER, SOME_NUMBER = 0xFF, (range(0x60, 0x7F), range(0xE0, 0xFF))
# Of whole numbers: what no index is, fresh each time as well; of int8 the one number that contracts leave out.
FAR = -(1 << 62)
UNUSED_INT8 = -128
READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE  # of pages
GUARD = 4096  # bytes on each side: a page, and a multiple of every vector width
PROBES, PROBED = 64, 4  # elements that are looked at once a call is over, in so many of its largest outputs


@dataclass
class Fenced:
    """One allocation between two guard bands."""

    raw: torch.Tensor  # uint8, guards included
    view: torch.Tensor  # the payload with its sizes and dtype
    guard: torch.Tensor  # the pattern both bands must still hold
    address: int = 0  # of raw, when it was made

    def __post_init__(self) -> None:
        self.address = self.raw.data_ptr()

    def broken(self) -> str | None:
        """Evidence of a write outside, or None."""
        end = self.raw.numel() - GUARD
        for name, band in (("before", self.raw[:GUARD]), ("after", self.raw[end:])):
            changed = (band != self.guard).nonzero().flatten()
            if len(changed):
                at = int(changed[-1]) - GUARD if name == "before" else int(changed[0])
                return f"{len(changed)} bytes written {name} the buffer, the nearest at {at:+d}"
        return None


Memory = Callable[[int], torch.Tensor]  # bytes, as many as asked for


def own_memory(device: str) -> Memory:
    """Memory of this process, its payload aligned to cache lines."""

    def make(size: int) -> torch.Tensor:
        raw = torch.empty(size + ALIGN, dtype=torch.uint8, device=device)
        offset = -(raw.data_ptr() + GUARD) % ALIGN
        return raw[offset : offset + size]

    return make


def _pages(raw: torch.Tensor) -> tuple[int, int]:
    """Address and bytes of the pages that an allocation has to itself: its bands reach beyond them at both ends."""
    start, end = raw.data_ptr(), raw.data_ptr() + raw.numel()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    return first, max(0, end // mmap.PAGESIZE * mmap.PAGESIZE - first)


def _protect(address: int, size: int, how: int) -> bool:
    """Say how pages may be used; whether the system did it."""
    set_protection = getattr(ctypes.CDLL(None), "mprotect", None)
    return bool(size and set_protection and not set_protection(ctypes.c_void_p(address), ctypes.c_size_t(size), how))


def memory_in(box: torch.Tensor) -> Memory:
    """Memory that another process handed back: slice after slice of a box."""
    offset = 0

    def take(size: int) -> torch.Tensor:
        nonlocal offset
        start, offset = offset, offset + aligned(size)
        if offset > len(box):
            raise ValueError(f"{len(box)} bytes were handed back, fewer than the case has")
        return box[start : start + size]

    return take


@dataclass
class Arena:
    """Memory for the calls of one case: `load` puts inputs in, `reset` poisons outputs, `call` runs a variant."""

    case: Case
    device: str = "cpu"
    workspace_bytes: int | None = None  # None: the variant has no `workspace`
    seed: int = field(default_factory=lambda: secrets.randbits(40))  # of the guard bands
    memory: Memory | None = None  # that was handed back; None: memory of its own

    def __post_init__(self) -> None:
        self.spec = contract.pass_of(self.case.module, self.case.phase)
        self.fences: dict[str, Fenced] = {}
        self._memory = self.memory or own_memory(self.device)
        self.inputs = self._allocate(self.spec.inputs)
        first_output = len(self.fences)
        self.outputs = self._allocate(self.spec.outputs)
        self._outputs = list(itertools.islice(self.fences.items(), first_output, None))
        self.initial: Values = {}  # what is read in place or added to
        self._changes: dict[str, list[Change]] = {}
        self.workspace: torch.Tensor | None = None
        if self.workspace_bytes:
            # Its contents are nobody's business: of what is handed back only its bands are.
            size = 0 if self.memory else self.workspace_bytes
            self.workspace = self._fence("workspace", (size,), torch.uint8)
        self.poison_seed = 0
        self.poison: dict[torch.dtype, int] = {}
        self._largest = sorted(self._outputs, key=lambda o: -o[1].view.numel())[:PROBED]
        self._grids = {name: grid(f.view.numel()).to(self.device) for name, f in self._largest if f.view.numel()}
        self.fence_off(self.seed)

    def _fence(self, name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        payload = math.prod(sizes) * dtype.itemsize
        # The band begins right behind the last element, so that a write outside by one is seen.
        raw = self._memory(payload + 2 * GUARD)
        view = raw[GUARD : GUARD + payload].view(dtype).view(sizes)
        self.fences[name] = Fenced(raw, view, raw[:0])
        return view

    def fence_off(self, seed: int) -> None:
        """New patterns in all guard bands; of memory that was handed back only what they should be."""
        self.seed = seed
        gen = torch.Generator().manual_seed(seed)
        bands = torch.randint(0, 256, (len(self.fences), GUARD), generator=gen, dtype=torch.uint8).to(self.device)
        for fence, band in zip(self.fences.values(), bands, strict=True):
            fence.guard = band
            if self.memory is None:
                fence.raw[:GUARD] = band
                fence.raw[len(fence.raw) - GUARD :] = band

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

    def load(self, values: Values, seed: int = 0) -> None:
        """Copy drawn values in, changed by a seed (bench/core/contents.py); addresses stay. What is read in place or
        added to is put there by `reset`, from the same values, which must live as long."""
        if seed and contents.settles(self.case):
            values, seed = contents.changed(self.case, values, seed), 0
        self._changes = contents.changes(self.case, values, seed)
        for name, buffer in self.inputs.items():
            self._put(name, buffer, values[name])
        self.initial = {n: values[n] for n in self.outputs if values.get(n) is not None}

    def _put(self, name: str, buffer: Value, value: Value) -> None:
        for into, source, change in zip(each(buffer), each(value), self._changes[name], strict=True):
            contents.put(into, source, change)

    def reset(self, seed: int | None = None) -> None:
        """Poison every output and the workspace afresh; restore what is read in place or added to."""
        self.poison_seed = secrets.randbits(40) if seed is None else seed
        self.poison = poison_of(self.poison_seed)
        for name, buffer in self.outputs.items():
            if name in self.initial:
                self._put(name, buffer, self.initial[name])
            else:
                for part in each(buffer):
                    for piece in contents.pieces(bits(part)):
                        piece.fill_(self.poison[part.dtype])
        if self.workspace is not None:
            self.workspace.fill_(workspace_poison(self.poison_seed))

    def call(self, function: Callable[..., object]) -> object:
        """One call with the contract's arguments; what the variant returns (it should be nothing)."""
        return function(*self.args(), **self.kwargs())

    def args(self) -> list[Value | Scalar]:
        """Tensors are new views each time, so that nothing that is done to one of them lasts."""
        values: list[Value | Scalar] = [_views(self.inputs[t.name]) for t in self.spec.inputs]
        values += scalars(self.case)
        return [*values, self.case.accumulate] if self.spec.accumulates else values

    def kwargs(self) -> Values:
        made = {name: _views(value) for name, value in self.outputs.items()}
        return made if self.workspace_bytes is None else {**made, "workspace": _views(self.workspace)}

    def tampered(self, args: list[Value | Scalar], kwargs: Values) -> str:
        """Which arguments are no longer the tensors that a call was given, and how; "" where all are."""
        moved = (f"{n}'s memory lies elsewhere" for n, f in self.fences.items() if f.raw.data_ptr() != f.address)
        positional = [(t.name, self.inputs[t.name], given) for t, given in zip(self.spec.inputs, args, strict=False)]
        own = {**self.outputs, "workspace": self.workspace}
        pairs = [*positional, *((name, own[name], given) for name, given in kwargs.items())]
        found = (_tampered(name, value, given) for name, value, given in pairs)
        return "; ".join(itertools.islice(filter(None, itertools.chain(found, moved)), 3))

    @contextmanager
    def inputs_sealed(self) -> Iterator[None]:
        """Nobody can write to the inputs meanwhile, on a CPU whose system has `mprotect`: who does is ended by
        SIGSEGV."""
        behind = {*(name for name, _ in self._outputs), "workspace"}
        pages = [_pages(fence.raw) for name, fence in self.fences.items() if name not in behind]
        sealed = [page for page in pages if _protect(*page, READ)]
        try:
            yield
        finally:
            for page in sealed:
                _protect(*page, READ | WRITE)

    # --- handing back ---

    def size(self) -> int:
        """Bytes of what `hand_back` copies."""
        return sum(aligned(sum(_lengths(self._back(name, f)))) for name, f in self.fences.items())

    def hand_back(self, box: torch.Tensor) -> None:
        """Copy everything, guard bands too, into a box that `memory_in` lays out again."""
        take = memory_in(box)
        for name, fence in self.fences.items():
            parts = self._back(name, fence)
            into = take(sum(_lengths(parts)))
            start = 0
            for part in parts:
                contents.copy(into[start : start + len(part)], part)
                start += len(part)

    @staticmethod
    def _back(name: str, fence: Fenced) -> list[torch.Tensor]:
        return [fence.raw[:GUARD], fence.raw[len(fence.raw) - GUARD :]] if name == "workspace" else [fence.raw]

    def probe(self) -> list["Probe"]:
        """A few elements of the largest outputs, at places that nobody can know before: what is there when a call
        says that it is over must be what is there when it is handed back."""
        return self.aimed()()

    def aimed(self) -> Callable[[], list["Probe"]]:
        """What will `probe` when it is called, at once: where to is settled now."""
        start, take = secrets.randbits(32), torch.take
        places = [
            (name, bits(f.view), (self._grids[name] + start) % f.view.numel())
            for name, f in self._largest
            if name in self._grids
        ]
        return lambda: [Probe(name, start, take(view, place)) for name, view, place in places]

    def late(self, probes: Iterable[tuple[str, int, list[int]]]) -> str:
        """What an arena of memory that was handed back holds elsewise than a probe saw it; "" where nothing is."""
        for name, start, seen in probes:
            view = self.fences[name].view
            now = torch.take(bits(view), (grid(view.numel()).to(view.device) + start) % view.numel())
            changed = (now != torch.tensor(seen, dtype=now.dtype, device=now.device)).sum()
            if changed:
                return f"{int(changed)} of {len(seen)} elements of {name} that were looked at changed after the call"
        return ""

    @staticmethod
    def written_since(before: "list[Probe]", now: "list[Probe]") -> str:
        """Of two looks at the same places before a call, whether somebody wrote between them; "" for nobody."""
        for was, is_ in zip(before, now, strict=True):
            if not torch.equal(was.bits, is_.bits):
                return f"{was.name} was written before the call, after it was poisoned"
        return ""

    def survivors(self) -> dict[str, torch.Tensor]:
        """Of each poisoned output that still holds the poison, where: True or False, in its shape."""
        found = {}
        for name, buffer in self.outputs.items():
            if name in self.initial:
                continue
            for i, p in enumerate(each(buffer)):
                left = bits(p) == self.poison[p.dtype]
                if left.any():
                    found[f"{name}[{i}]" if isinstance(buffer, list) else name] = left
        return found

    def broken_fences(self) -> dict[str, str]:
        return {name: evidence for name, f in self.fences.items() if (evidence := f.broken())}


def handed_bytes(case: Case) -> int:
    """Bytes of what `hand_back` copies of an arena of this case, the bands of a workspace included."""
    p, shape = contract.pass_of(case.module, case.phase), case.shape
    total = aligned(2 * GUARD)
    for tensors in (p.inputs, p.outputs):
        packs: dict[str, int] = {}
        for t in tensors:
            if t.pack:
                packs[t.pack] = packs.get(t.pack, 0) + t.bytes(shape)
            elif t.when(shape):
                item = DTYPES[t.dtype_in(shape)].itemsize
                total += sum(aligned(math.prod(sizes) * item + 2 * GUARD) for sizes in t.many_sizes(shape))
        total += sum(aligned(size + 2 * GUARD) for size in packs.values())
    return total


@dataclass
class Probe:
    """Bits of some elements of an output: which follows from `start` (see `grid`)."""

    name: str
    start: int
    bits: torch.Tensor

    def plain(self) -> tuple[str, int, list[int]]:
        return self.name, self.start, self.bits.tolist()


def _lengths(parts: list[torch.Tensor]) -> list[int]:
    return [len(p) for p in parts]


def grid(count: int) -> torch.Tensor:
    """Places spread evenly over so many elements, the last one among them."""
    return torch.linspace(0, count - 1, min(PROBES, count), dtype=torch.float64).round_().long()


def poison_of(seed: int) -> dict[torch.dtype, int]:
    """The bits for each dtype. Of an even seed those of a NaN: none that arithmetic makes (free bits all clear on a
    CPU, all set on a GPU); of an odd one those of a large number, of either sign. Of whole numbers one that is no
    answer."""
    gen = random.Random(seed)
    if seed % 2:
        large = {dtype: base | gen.getrandbits(free) for dtype, (base, free) in LARGE.items()}
        less = gen.randrange(2)
        made = {dtype: bits - (less << 8 * dtype.itemsize - 1) for dtype, bits in large.items()}
    else:
        made = {dtype: base | gen.randrange(1, (1 << min(bits, 30)) - 1) for dtype, (base, bits) in QUIET_NAN.items()}
    return {**made, torch.int64: FAR + gen.randrange(1 << 40), torch.int8: UNUSED_INT8}


def workspace_poison(seed: int) -> int:
    """A byte."""
    return random.Random(seed).choice([*SOME_NUMBER[0], *SOME_NUMBER[1]]) if seed % 2 else NO_NUMBER


def _views(value: Value) -> Value:
    return map(value, lambda t: t.detach())


def _tampered(name: str, value: Value, given: object) -> str:
    parts, now = each(value), given if isinstance(given, list) else [] if given is None else [given]
    if len(parts) != len(now):
        return f"{name} has {len(now)} tensors, not {len(parts)}"
    for part, t in zip(parts, now, strict=True):
        if type(t) is not torch.Tensor:
            return f"{name} became a {type(t).__name__}"
        if t.data_ptr() != part.data_ptr():
            return f"{name} became a tensor at another address"
        if (t.shape, t.stride(), t.dtype) != (part.shape, part.stride(), part.dtype):
            return f"{name} became a tensor of other sizes, strides or dtype"
    return ""


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
        torch.equal(bits(x.contiguous()), bits(y.contiguous()))
        for name in a
        for x, y in zip(each(a[name]), each(b[name]), strict=True)
    )


def workspace_of(module: ModuleType, case: Case) -> int | None:
    """Bytes of scratch that a variant's phase asks for; None where it takes none. Raises Unavailable for a shape that
    it says it does not take."""
    need_options(module, case.layer, case.phase, case.shape)
    need_support(module, case.shape)
    return module.workspace(case.shape, case.phase) if takes_workspace(module, case.phase) else None
