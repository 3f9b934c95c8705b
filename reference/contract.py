"""What every file in this folder declares about its layer, and the arithmetic that follows from it.

A layer is a module: `reference/<layer>.py`. It declares

    FORWARD, BACKWARD   a `Pass` each: tensors in, Python scalars, tensors out (BACKWARD may be None)
    forward, backward   the truth in plain torch, runnable in fp64: takes the pass's inputs and scalars by
                        position (in-place tensors by keyword), returns {name: tensor} for all outputs
    RAGGED              small awkward shapes that every variant must get right
    CASES               {name: edit(tensors, shape)}: structured inputs that break careless kernels; an edit must do
                        its work on any shape of the layer, or say with `applies` where it has none to do
    flops(shape, phase) useful floating-point operations
    consistent(tensors, shape)   optional: makes random tensors meaningful (variances positive, …)
    settle(tensors, shape)       optional: moves values (to ones that the dtype has) from where rounding decides what a
                        whole number is, of layers that have whole numbers as outputs: those are compared exactly. Done
                        after `consistent`, before an edit, and after each change of contents
    compulsory_bytes(shape, phase)   optional: where "each input once, each output once" is not the floor
    CHOICES             optional: {attribute: its values}, of every attribute that is a word or a flag: no shape, and no
                        call, has another one (`need_known`)
    typical(B, T)       optional: the shape that is timed where no model lists the layer among its calls
    TIED                optional: names of tensors whose elements belong together one by one
    SUMMED              optional: names of tensors of which nothing but a sum over all elements comes out
    LONG                optional: {symbol: least size}, instead of the default below: what `sliced` may cut down

A *shape* is a plain dict: sizes by symbol (`B T C NH NKV HS V VP M N K`), options (`causal`, `epilogue`, …) and
`dtype`, the working dtype ("fp32", "bf16", "fp16", "fp64"). `phase` is "forward" or "backward".

A variant (`kernels/<backend>/<layer>/<variant>.py`) has functions of the same names and the signature that
`parameters` gives: inputs, scalars, then `*`, then everything it writes. A tensor that a shape does not use is None.
An optional scalar is one more parameter, 0 by default, of the variants that take it; the others are not called with
shapes that have it.
"""

import functools
import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

Shape = dict[str, Any]
PHASES = ("forward", "backward")
FLAG = (False, True)  # of CHOICES
ITEM_SIZE = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "int": 8, "int8": 1}
INTEGERS = ("int", "int8")

# Of what is timed: llm.c's defaults, which fit every machine.
DEFAULT_B, DEFAULT_T = 4, 1024

# Axes along which a shape may be cut and still be the same work for each row or tile, and how far down at most: a slice
# of a shape keeps 128 of those that tiles run along, so that it has a whole tile of any usual size.
LONG = {"B": 2, "R": 2, "M": 128, "N": 128, "T": 128}
TILE = 128  # a slice leaves the same rest by this, where it is not smaller
VECTOR = 16  # elements: rows of a multiple of it begin at whole vectors in every dtype

_NOT_LAYERS = {"__init__", "contract"}


def always(_: Shape) -> bool:
    return True


@dataclass(frozen=True)
class Tensor:
    """One argument of a layer.

    shape        symbols separated by blanks ("B T C"); "" is a 0-d tensor; a symbol may be a product ("3*C"), or a
                 part ("HS/2")
    dtype        "work" (the shape's dtype), "fp32", "int" (int64; of an input, values in [0, shape[high])), or "int8"
                 (values in [-127, 127])
    when         whether a shape has it at all; it is None otherwise
    pack         tensors of one pack are slices, along axis 2, of one allocation (attention's q, k, v)
    inplace      read and written
    accumulates  a parameter gradient: overwritten, or added to where `accumulate` is true
    many         a list of tensors; `shape` then names a list of shapes
    scale        standard deviation of its random values
    parameter    a trained parameter: not counted among the bytes that forward saves for backward
    """

    name: str
    shape: str
    dtype: str = "work"
    when: Callable[[Shape], bool] = always
    pack: str | None = None
    inplace: bool = False
    accumulates: bool = False
    many: bool = False
    high: str = ""
    scale: float = 1.0
    parameter: bool = False

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """The tensor's sizes; for a list use `many_sizes`."""
        return tuple(_size(symbol, shape) for symbol in self.shape.split())

    def many_sizes(self, shape: Shape) -> list[tuple[int, ...]]:
        """Sizes of each tensor: one entry unless this is a list."""
        return [tuple(s) for s in shape[self.shape]] if self.many else [self.sizes(shape)]

    def dtype_in(self, shape: Shape) -> str:
        return shape["dtype"] if self.dtype == "work" else self.dtype

    def bytes(self, shape: Shape) -> int:
        """Bytes of this tensor (of all in the list), 0 where the shape does not use it."""
        if not self.when(shape):
            return 0
        elements = sum(math.prod(sizes) for sizes in self.many_sizes(shape))
        return elements * ITEM_SIZE[self.dtype_in(shape)]


@dataclass(frozen=True)
class Pass:
    """Inputs (read only), names of Python scalars taken from the shape, and outputs (written, or in place).

    optional: scalars that only some shapes have; where one is missing, or 0, a call does not mention it, and so a layer
    that gets one more has the same calls as before everywhere else. Raises ValueError beside a gradient that
    accumulates, whose flag comes last too.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    scalars: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.optional and self.accumulates:
            raise ValueError("optional scalars, and gradients that accumulate")

    @property
    def accumulates(self) -> bool:
        return any(t.accumulates for t in self.outputs)

    def positional(self) -> list[str]:
        """Parameter names before the `*`."""
        names = [t.name for t in self.inputs] + list(self.scalars)
        return [*names, "accumulate"] if self.accumulates else names

    def options_in(self, shape: Shape) -> tuple[str, ...]:
        """The optional scalars that a shape has."""
        return tuple(name for name in self.optional if shape.get(name))

    def scalars_in(self, shape: Shape) -> list[Any]:
        """What a call at this shape is given of scalars, by position, without `accumulate`: optional ones up to the
        last that the shape has."""
        last = max((i + 1 for i, name in enumerate(self.optional) if shape.get(name)), default=0)
        return [shape[name] for name in self.scalars] + [shape.get(name, 0) for name in self.optional[:last]]

    def keyword(self) -> list[str]:
        """Parameter names after the `*`."""
        return [t.name for t in self.outputs]

    def tensors(self) -> Iterator[Tensor]:
        yield from self.inputs
        yield from self.outputs


@dataclass(frozen=True)
class Call:
    """A shape of the training step and how many times one step calls it (0: only in an unfused step)."""

    shape: Shape
    calls: int


@functools.cache
def layer_names() -> tuple[str, ...]:
    """All layers, by file name."""
    here = Path(__file__).parent
    return tuple(sorted(p.stem for p in here.glob("*.py") if p.stem not in _NOT_LAYERS))


def load(layer: str) -> ModuleType:
    """The module of a layer. Raises KeyError for an unknown name."""
    if layer not in layer_names():
        raise KeyError(layer)
    return importlib.import_module(f"reference.{layer}")


def pass_of(layer: ModuleType, phase: str) -> Pass:
    """FORWARD or BACKWARD. Raises ValueError where the layer has no such phase."""
    found = {"forward": layer.FORWARD, "backward": layer.BACKWARD}[phase]
    if found is None:
        raise ValueError(f"{layer.__name__.split('.')[-1]} has no {phase}")
    return found


def phases_of(layer: ModuleType) -> tuple[str, ...]:
    return PHASES if layer.BACKWARD is not None else PHASES[:1]


def need_known(layer: ModuleType, attributes: Mapping[str, Any]) -> None:
    """Raises ValueError for an attribute, of a shape or by a call's parameter, that is none of the layer's CHOICES: a
    kernel that only asks whether it is one of them would take it for the other."""
    for name, known in getattr(layer, "CHOICES", {}).items():
        if name in attributes and attributes[name] not in known:
            said = ", ".join(map(repr, known))
            raise ValueError(f"{layer.__name__.split('.')[-1]}: {name} {attributes[name]!r} is none of {said}")


def overwriting(layer: ModuleType, phase: str, sizes: Shape, dtype: str) -> Shape:
    """The shape of a call of these sizes at a working dtype; parameter gradients, if any, are overwritten. Raises
    ValueError as `need_known` does."""
    shape = {**sizes, "dtype": dtype}
    need_known(layer, shape)
    return {**shape, "accumulate": False} if pass_of(layer, phase).accumulates else shape


def applies(
    *phases: str, when: Callable[[Shape], bool] = always
) -> Callable[[Callable[[Any, Shape], None]], Callable[[Any, Shape], None]]:
    """Decorates an edit of CASES that changes something in these phases only (default: all), or only in some shapes."""

    def mark(edit: Callable[[Any, Shape], None]) -> Callable[[Any, Shape], None]:
        edit.phases, edit.when = phases or PHASES, when  # type: ignore[attr-defined]
        return edit

    return mark


def alike(edit: Callable[[Any, Shape], None]) -> Callable[[Any, Shape], None]:
    """Decorates an edit that makes all elements the result of one and the same operation: one exponential of one
    number, say. Its error is in all of them, and no sum of many makes it less."""
    edit.alike = True  # type: ignore[attr-defined]
    return edit


def few_roundings(edit: Callable[[Any, Shape], None]) -> Callable[[Any, Shape], None]:
    """Decorates an edit after which few roundings decide how far off a whole row is: how large they are in one draw is
    a matter of luck, so more draws tell what honest arithmetic does."""
    edit.few_roundings = True  # type: ignore[attr-defined]
    return edit


def at_large_sizes(edit: Callable[[Any, Shape], None]) -> Callable[[Any, Shape], None]:
    """Decorates an edit that every large slice is tried with: what it changes, kernels go about by size."""
    edit.large = True  # type: ignore[attr-defined]
    return edit


def wide(shape: Shape) -> bool:
    """Whether the working dtype has fp32's exponents: 1e20 and 1e-20 are numbers in it."""
    return shape["dtype"] != "fp16"


def scaled(name: str, factor: float, *phases: str) -> Callable[[Any, Shape], None]:
    """An edit: the tensors whose names begin so are so many times as large, in these phases (default: backward)."""

    @applies(*(phases or ("backward",)), when=wide)
    def edit(tensors: Any, shape: Shape) -> None:
        for one, value in tensors.items():
            if one.startswith(name) and value is not None:
                value.mul_(factor)

    return edit


def edits_of(layer: ModuleType, phase: str, shape: Shape) -> list[str]:
    """The names of CASES that say something about this phase at this shape (with its dtype)."""
    return [
        name
        for name, edit in layer.CASES.items()
        if phase in getattr(edit, "phases", PHASES) and getattr(edit, "when", always)(shape)
    ]


def aligned(layer: ModuleType, sizes: Shape) -> bool:
    """Whether each row of each tensor of forward begins at a whole vector, so that no kernel meets an edge in it."""
    shape, rows = {**sizes, "dtype": "fp32"}, ("work", "int8")
    found = [many[-1] for t in layer.FORWARD.tensors() for many in t.many_sizes(shape) if t.dtype in rows and many]
    return all(last % VECTOR == 0 for last in found)


def cut(size: int, most: int) -> int:
    """About `most` of `size`: the rest by TILE, or by the largest power of two up to `most`, is the same, and there is
    at least one whole tile beside it."""
    if size <= most:
        return size
    tile = min(TILE, 1 << (most.bit_length() - 1))
    rest = size % tile
    return min(size, max(1, (most - rest) // tile) * tile + rest)


def sliced(layer: ModuleType, shape: Shape, elements: int) -> Shape:
    """The shape with its long axes cut until no tensor that has one is much larger than `elements`. Widths of rows and
    head sizes stay, and so do alignment and whatever a kernel chooses by them."""
    shape, long = dict(shape), getattr(layer, "LONG", LONG)
    for name in {t.shape for t in layer.FORWARD.tensors() if t.many}:
        share = elements // len(shape[name])
        shape[name] = [(cut(s[0], max(4, share // math.prod(s[1:]))), *s[1:]) if s else s for s in shape[name]]
    for symbol, least in long.items():
        if symbol in shape:
            excess = _largest(layer, shape, long) / elements
            shape[symbol] = cut(shape[symbol], max(least, int(shape[symbol] / max(1.0, excess))))
    return shape


def _largest(layer: ModuleType, shape: Shape, long: dict[str, int]) -> int:
    """Elements of the largest tensor of forward that has a long axis."""
    cuttable = [t for t in layer.FORWARD.tensors() if not t.many and set(re.split(r"[ *]", t.shape)) & set(long)]
    return max((math.prod(t.sizes(shape)) for t in cuttable), default=0)


def flops(layer: ModuleType, shape: Shape, phase: str) -> int:
    return layer.flops(shape, phase)


def min_bytes(layer: ModuleType, shape: Shape, phase: str) -> int:
    """Compulsory traffic in bytes: each input read once, each output written once, in place both.

    A gradient that accumulates is read as well. This is the floor against which a time is judged.
    """
    if hasattr(layer, "compulsory_bytes"):
        return layer.compulsory_bytes(shape, phase)
    return default_bytes(pass_of(layer, phase), shape)


def default_bytes(p: Pass, shape: Shape) -> int:
    total = sum(t.bytes(shape) for t in p.tensors())
    total += sum(t.bytes(shape) for t in p.outputs if t.inplace)
    if shape.get("accumulate"):
        total += sum(t.bytes(shape) for t in p.outputs if t.accumulates)
    return total


def saved_bytes(layer: ModuleType, shape: Shape) -> int:
    """Bytes of activations and statistics that must live from forward to backward."""
    if layer.BACKWARD is None:
        return 0
    produced = {t.name for t in layer.FORWARD.tensors()}
    kept = [t for t in layer.BACKWARD.inputs if t.name in produced and not t.parameter]
    return sum(t.bytes(shape) for t in kept)


def _size(symbol: str, shape: Shape) -> int:
    factors, _, divisor = symbol.partition("/")
    return math.prod(int(s) if s.isdigit() else int(shape[s]) for s in factors.split("*")) // int(divisor or 1)
