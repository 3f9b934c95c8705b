"""Which of a kernel's parameters an address was made from, as far as its instructions say so.

Two arguments may be slices of one workspace, one behind the other. What goes past the end of the first lands in the
second, where the kernel may write: only that the address was made from the first tells that it may not do so there.
"""

import functools
import re
from collections import defaultdict, deque
from dataclasses import dataclass

from bench.simulate.ptx import Block, Statement
from bench.simulate.table import TYPE
from bench.simulate.values import LOADS, REGISTER, WITHOUT_RESULT

MOST_PARAMETERS = 64  # bits of a mask
NAME = re.compile(r"%?[A-Za-z_$][\w$]*")


@dataclass(frozen=True)
class Base:
    """`parameters` that a value may be made from; `other`: it may be an address that was made from none of them; `far`:
    it may be the distance from one object to any other.

    What was loaded from a parameter's memory may be an address, or a distance, to what that parameter points to: tables
    of both are in use, and a table's argument holds all the tensors that it tells of.
    """

    parameters: frozenset[int] = frozenset()
    other: bool = False
    far: bool = False

    @property
    def number(self) -> bool:
        """Whether it is nothing of all that."""
        return not (self.parameters or self.other or self.far)

    def either(self, more: "Base") -> "Base":
        if more is self or more.number:
            return self
        return Base(self.parameters | more.parameters, self.other or more.other, self.far or more.far)

    def plus(self, more: "Base") -> "Base":
        """A sum: where one side surely is an address of a parameter, the other is a distance."""
        if self.number or more.number:
            return more if self.number else self
        sure = any(b.parameters and not b.other for b in (self, more))
        far = self.far or more.far
        return Base(self.parameters | more.parameters, (self.other or more.other) and not sure, far)


NUMBER, OTHER = Base(), Base(other=True)
ANYTHING = Base(other=True, far=True)  # of shared or local memory, or of a call


@dataclass(eq=False, slots=True)
class _Made:
    """A register, a statement that makes it, and of what; whether any of that changed since it was last looked at."""

    register: str
    by: Statement
    sources: set[str]
    changed: bool = True


class Bases:
    """The registers of one function. Scopes of inline assembly may use a name twice: then it may be either."""

    def __init__(self, body: Block, parameters: dict[str, int]):
        self.parameters = parameters
        self.known: dict[str, Base] = {}
        uses: dict[str, list[_Made]] = defaultdict(list)
        made = []
        for s in body.statements():
            if not s.operands or s.opcode.split(".", 1)[0] in WITHOUT_RESULT:
                continue
            sources = {r for operand in s.operands[1:] for r in _names_in(operand)}
            for register in REGISTER.findall(s.operands[0]):
                made.append(_Made(register, s, sources))
                for source in sources:
                    uses[source].append(made[-1])
        made_somewhere = {m.register for m in made}
        for m in made:
            m.sources &= made_somewhere
        waiting = deque(made)
        while waiting:
            m = waiting.popleft()
            if not m.changed or not self.known.keys() >= m.sources:
                continue  # its turn comes when they are known
            m.changed = False
            before = self.known.get(m.register)
            after = self.result(m.by) if before is None else before.either(self.result(m.by))
            if after != before:
                self.known[m.register] = after
                for user in uses[m.register]:
                    user.changed = True
                waiting += uses[m.register]

    def mask(self, statement: Statement) -> int:
        """A bit for each parameter that the global address of an access may come from; 0 where it may be any."""
        address = self.of_address(_global_operand(statement))
        if address.other or address.far or any(k >= MOST_PARAMETERS for k in address.parameters):
            return 0
        return sum(1 << k for k in address.parameters)

    def of_address(self, operand: str) -> Base:
        found = NAME.search(operand)
        return self.of(found[0]) if found else OTHER

    def of(self, operand: str) -> Base:
        """Of an operand: a register, a parameter's name, another variable, or a number."""
        if operand in self.parameters:
            return Base(frozenset({self.parameters[operand]}))
        if not _is_name(operand) or operand.startswith("%") or operand in self.known:
            return self.known.get(operand, NUMBER)
        return NUMBER if operand in ("WARP_SZ",) else OTHER

    def result(self, statement: Statement) -> Base:
        name, parts, wide = _parsed(statement.opcode)
        sources = [s.strip() for s in statement.operands[1:]]
        if name == "ld" and "param" in parts:
            return self.of_address(sources[0])
        if name == "call":
            return ANYTHING
        if name in LOADS:
            address = self.of_address(_global_operand(statement))
            if "global" in parts and address.parameters and not address.far:
                return Base(address.parameters, other=wide)
            return ANYTHING if wide else NUMBER
        if name == "mov" and (sources[0].startswith("{") or statement.operands[0].startswith("{")):
            return ANYTHING if wide and not statement.operands[0].startswith("{") else NUMBER
        if name in ("mov", "cvta", "mapa"):
            return self.of(re.split(r"[+\s]", sources[0])[0])
        if name == "selp":
            return self.of(sources[0]).either(self.of(sources[1]))
        found = NUMBER
        for source in sources:
            found = found.plus(self.of(source))
        return found


# A kernel says the same again and again, and its statements are asked until nothing changes.
@functools.lru_cache(maxsize=1 << 14)
def _names_in(operand: str) -> tuple[str, ...]:
    return tuple(NAME.findall(operand))


@functools.lru_cache(maxsize=1 << 14)
def _is_name(operand: str) -> bool:
    return bool(NAME.fullmatch(operand))


@functools.lru_cache(maxsize=1 << 12)
def _parsed(opcode: str) -> tuple[str, list[str], bool]:
    """Name, modifiers, and whether one of them is a type of 64 bits or more."""
    name, *parts = opcode.split(".")
    return name, parts, any(p.endswith(("64", "128")) for p in parts if TYPE.fullmatch(p))


def _global_operand(statement: Statement) -> str:
    """The operand of an access that is its address; of a copy, the side that may be global memory."""
    addresses = [o for o in statement.operands if o.startswith("[")]
    if statement.opcode.startswith("cp.") and len(addresses) > 1:
        spaces = [p for p in statement.opcode.split(".") if p.startswith(("shared", "global"))]
        return addresses[0] if spaces[:1] == ["global"] else addresses[1]
    return addresses[0] if addresses else ""
