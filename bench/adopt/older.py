"""Triton's language as it was: a module for kernels that want what the Triton that is here has no more.

Block pointers went in Triton 3.9, `tl.math.tanh`, `tl.math.pow` and `tl.libdevice` before (to triton.language.extra). A
kernel's own lines stay as they are; `tl` is another module for them, of which a copy lies beside the variant.
"""

import re
import textwrap

from bench.adopt.names import words

NAME = "_older.py"
IMPORTED, LANGUAGE = "import triton.language as tl", "from . import _older as tl"
# Of libdevice, by the names that tl.math and tl.libdevice had for them.
FUNCTIONS = words(
    "acos asin atan atan2 ceil cos cosh div_rn div_rz erf exp exp2 expm1 fast_dividef fast_expf fast_logf floor fma log"
    " log10 log1p log2 pow round rsqrt sin sinh sqrt tan tanh trunc"
)
TEXT = '''"""Triton's language with what older ones had: block pointers, functions of libdevice in math."""

import triton
from triton.language import (
NAMES
)
from triton.language import core
from triton.language import math as now
from triton.language.extra.cuda import libdevice


class math:
MATH


@core._aggregate
class Line:
    """A block pointer of one axis."""

    base: core.tensor
    shape: core.tuple
    strides: core.tuple
    offsets: core.tuple
    size: core.constexpr


@core._aggregate
class Block:
    """A block pointer of two axes."""

    base: core.tensor
    shape: core.tuple
    strides: core.tuple
    offsets: core.tuple
    rows: core.constexpr
    columns: core.constexpr


@triton.jit
def _number(offset):
    """One that a loop may change."""
    return core.to_tensor(offset).to(core.int64)


@triton.jit
def make_block_ptr(base, shape, strides, offsets, block_shape, order):
    if len(block_shape) == 1:
        return Line(base, shape, strides, (_number(offsets[0]),), block_shape[0])
    else:
        first, second = _number(offsets[0]), _number(offsets[1])
        return Block(base, shape, strides, (first, second), block_shape[0], block_shape[1])


@triton.jit
def advance(base, offsets):
    if isinstance(base, Line):
        return Line(base.base, base.shape, base.strides, (base.offsets[0] + offsets[0],), base.size)
    else:
        moved = (base.offsets[0] + offsets[0], base.offsets[1] + offsets[1])
        return Block(base.base, base.shape, base.strides, moved, base.rows, base.columns)


@triton.jit
def _places(at, boundary_check):
    """Pointers, and which of them lie inside along the axes that are checked."""
    if isinstance(at, Line):
        i = (at.offsets[0] + core.arange(0, at.size)).to(core.int64)
        inside = i == i
        for k in core.static_range(len(boundary_check)):
            inside = inside & (i >= 0) & (i < at.shape[0])
        return at.base + i * at.strides[0], inside
    else:
        i = (at.offsets[0] + core.arange(0, at.rows)).to(core.int64)[:, None]
        j = (at.offsets[1] + core.arange(0, at.columns)).to(core.int64)[None, :]
        inside = (i == i) & (j == j)
        for k in core.static_range(len(boundary_check)):
            if boundary_check[k] == 0:
                inside = inside & (i >= 0) & (i < at.shape[0])
            else:
                inside = inside & (j >= 0) & (j < at.shape[1])
        return at.base + i * at.strides[0] + j * at.strides[1], inside


@triton.jit
def load(pointer, mask=None, other=None, boundary_check=(), padding_option: core.constexpr = "",
         cache_modifier: core.constexpr = "", eviction_policy: core.constexpr = "", volatile: core.constexpr = False):
    if isinstance(pointer, core.tensor):
        return core.load(pointer, mask=mask, other=other, cache_modifier=cache_modifier,
                         eviction_policy=eviction_policy, volatile=volatile)
    else:
        places, inside = _places(pointer, boundary_check)
        if len(boundary_check) == 0:
            return core.load(places)
        elif padding_option == "nan":
            return core.load(places, mask=inside, other=float("nan"))
        else:
            return core.load(places, mask=inside, other=0)


@triton.jit
def store(pointer, value, mask=None, boundary_check=(), cache_modifier: core.constexpr = "",
          eviction_policy: core.constexpr = ""):
    if isinstance(pointer, core.tensor):
        core.store(pointer, value, mask=mask, cache_modifier=cache_modifier, eviction_policy=eviction_policy)
    else:
        places, inside = _places(pointer, boundary_check)
        if len(boundary_check) == 0:
            core.store(places, value.to(pointer.base.dtype.element_ty))
        else:
            core.store(places, value.to(pointer.base.dtype.element_ty), mask=inside)
'''
BLOCKS = re.compile(r"\btl\.make_block_ptr\(")
FUNCTION = re.compile(r"\btl\.(math|libdevice)\.(\w+)")


def wants(text: str) -> bool:
    """Whether a kernel's text has what the Triton that is here has no more."""
    import triton.language as tl

    lost = "removed" in (tl.make_block_ptr.__doc__ or "removed") if hasattr(tl, "make_block_ptr") else True
    gone = any(n in FUNCTIONS and not hasattr(getattr(tl, of, None), n) for of, n in FUNCTION.findall(text))
    return gone or (lost and bool(BLOCKS.search(text)))


def module() -> str:
    """The text of the module, for the Triton that is here."""
    import triton.language as tl
    from triton.language.extra import libdevice

    names = {n: "now" for n in dir(tl.math) if hasattr(getattr(tl.math, n), "__triton_builtin__")}
    names |= {n: "libdevice" for n in FUNCTIONS if n not in names and hasattr(libdevice, n)}
    own = {"advance", "core", "load", "make_block_ptr", "math", "store"}
    every = [n for n in sorted(set(tl.__all__) - own) if hasattr(tl, n)]
    listed = textwrap.fill(f"{', '.join(every)},", 116, initial_indent="    ", subsequent_indent="    ")
    math = "\n".join(f"    {n} = {of}.{n}" for n, of in sorted(names.items()))
    return TEXT.replace("NAMES", listed).replace("MATH", math)
