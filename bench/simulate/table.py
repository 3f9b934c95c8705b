"""How a line of the instruction table is written and matched: PTX syntax first, then the C++ that it becomes.

    instruction("9.7.3 abs", "abs{.FTZ}.f32 d, a", "{FTZ}(__builtin_fabsf({a}))", FTZ={"ftz": "flush"})

Opcode: lower case stands for itself, `{.x}` may be missing, and a word in capitals is a choice, whose PTX spellings the
keyword of that name lists. A dict says what each spelling puts into the C++ for `{NAME}` ("" where a missing one has no
entry); a tuple of types puts in the C++ type. `W` is, without being listed, the type twice as wide as `T`.

Operands: `a` is a value of type T (or of the opcode's last type); `a:u32` of type u32; `a:u32=0` may be missing, and
is then the C++ text `0`; `[a]` is an address; `<a>` is a vector or one register; `d|p` are two results. What is called
d, p or q is a result.

C++: an expression is assigned to the result. A text that assigns its results itself (`{d=expression}`), or that of an
instruction without a result, is a statement. `{a}` is a value, `{a:address}` an address, `{T}` a C++ type, `{T:half}`
the class of a half type. `self` is the running thread, `{site}` the number of the instruction (for reports). Where a
text is not enough, a function of `Use` (translate.py) writes the statements.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

WIDE = {f"{kind}{bits}": f"{kind}{2 * bits}" for kind in "us" for bits in (8, 16, 32)}
TYPE = re.compile(r"(?:[bus](?:8|16|32|64|128)|b?f16(?:x2)?|tf32|f32|f64|pred)")
PREDICATES = ("p", "q")
RESULTS = ("d", *PREDICATES)


@dataclass(frozen=True)
class OperandSyntax:
    """One operand of a table line: `kind` is value, address, vector or name; "d|p" has a `second` result."""

    name: str
    kind: str
    type: str | None = None
    default: str | None = None
    second: str = ""

    @property
    def is_result(self) -> bool:
        return self.name in RESULTS


Code = Any  # str, or Callable[[Use], str]


@dataclass(frozen=True, eq=False)
class Instruction:
    section: str  # of the PTX ISA manual
    syntax: str
    code: Code
    choices: dict[str, dict[str, str]]
    types: frozenset[str]  # the choices that are types
    operands: tuple[OperandSyntax, ...]
    pattern: str = field(repr=False)  # of opcodes; compiled when one is looked for, which most processes never do
    header: str = ""  # a C++ header that the code needs besides the usual ones

    @property
    def opcode(self) -> str:
        return self.syntax.split(" ", 1)[0]

    def match(self, opcode: str, operands: int) -> dict[str, str] | None:
        """The spelling of each choice where this line describes `opcode` with so many operands; else None."""
        needed = sum(o.default is None for o in self.operands)
        found = _compiled(self.pattern).fullmatch(opcode)
        if not found or not needed <= operands <= len(self.operands):
            return None
        return {name: value or "" for name, value in found.groupdict().items()}

    def spellings(self) -> Iterator[str]:
        """Every opcode that this line describes."""
        parts = []
        for part in re.findall(r"\{[^}]*\}|\.[\w:]+|^[\w]+", self.opcode):
            optional, word = part.startswith("{"), part.strip("{}")
            name = word.lstrip(".")
            words = [f".{s}" for s in self.choices[name] if s] if name in self.choices else [word]
            missing_listed = name in self.choices and "" in self.choices[name]
            parts.append(["", *words] if optional or missing_listed else words)
        yield from ("".join(combination) for combination in product(*parts))


def instruction(section: str, syntax: str, code: Code, **choices: Any) -> Instruction:
    """A line of the table."""
    opcode, _, rest = syntax.partition(" ")
    types = frozenset(name for name, listed in choices.items() if not isinstance(listed, dict))
    listed = {n: c if isinstance(c, dict) else {t: t for t in c} for n, c in choices.items()}
    operands = tuple(_operand(o.strip()) for o in rest.split(",")) if rest else ()
    return Instruction(section, syntax, code, listed, types, operands, _pattern(opcode, listed))


def with_header(header: str, lines: list[Instruction]) -> list[Instruction]:
    """The same lines, whose C++ needs a header of its own."""
    return [replace(line, header=header) for line in lines]


def _operand(text: str) -> OperandSyntax:
    text, separator, default = text.partition("=")
    text, _, kind = text.partition(":")
    has_default = default if separator else None
    if text.startswith("["):
        return OperandSyntax(text.strip("[]"), "address", kind or None, has_default)
    if text.startswith("<"):
        return OperandSyntax(text.strip("<>"), "vector", kind or None, has_default)
    name, _, second = text.partition("|")
    return OperandSyntax(name, "name" if kind == "name" else "value", kind or None, has_default, second)


_compiled = functools.cache(re.compile)


def _pattern(opcode: str, choices: dict[str, dict[str, str]]) -> str:
    out = ""
    for part in re.findall(r"\{[^}]*\}|\.[\w:]+|^[\w]+", opcode):
        optional, word = part.startswith("{"), part.strip("{}")
        name = word.lstrip(".")
        if name in choices:
            spellings = "|".join(re.escape(s) for s in sorted(choices[name], key=len, reverse=True) if s)
            piece = rf"(?:\.(?P<{name}>{spellings}))"
            optional = optional or "" in choices[name]
        else:
            piece = f"(?:{re.escape(word)})"
        out += piece + ("?" if optional else "")
    return out
