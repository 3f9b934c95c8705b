"""What kind of number a register holds, as far as the instructions that made it say so.

PTX registers have a width and no type, Triton's above all. Where lanes of a warp store to one word, the race checker
has to know whether what differs is the last bit of a float.
"""

import re
from collections import defaultdict
from collections.abc import Iterator

from bench.simulate.ptx import Block, Statement
from bench.simulate.table import TYPE

FLOATS = {"f32": "F32", "tf32": "Tf32", "f64": "F64", "f16": "F16", "f16x2": "F16", "bf16": "Bf16", "bf16x2": "Bf16"}
WITHOUT_RESULT = ("st", "red", "bra", "bar", "barrier", "ret", "exit", "cp", "prefetch", "membar", "fence")
# Which operands a result is a copy of; the rest of the instructions make something new.
COPIES = {"mov": slice(1, None), "selp": slice(1, 3), "shfl": slice(1, 2), "prmt": slice(1, 3)}
LOADS = ("ld", "atom", "ldmatrix")
REGISTER = re.compile(r"%?[A-Za-z_$][\w$]*")


class Values:
    """The registers of one kernel. Scopes of inline assembly may use a name twice: then both have to agree."""

    def __init__(self, body: Block):
        self.made: dict[str, list[Statement]] = defaultdict(list)
        for statement in body.statements():
            if statement.operands and statement.opcode.split(".", 1)[0] not in WITHOUT_RESULT:
                for register in REGISTER.findall(statement.operands[0]):
                    self.made[register].append(statement)
        self.known: dict[str, frozenset[str]] = {}

    def exchanged(self, statement: Statement) -> str:
        """The one kind of what a store writes, or a shuffle hands to other lanes; "Other" where it is not one kind."""
        name = statement.opcode.split(".", 1)[0]
        if name not in ("st", "shfl"):
            return "Other"
        kinds: set[str] = set()
        for register in REGISTER.findall(statement.operands[1]):
            kinds |= self.kinds(register)
        return kinds.pop() if len(kinds) == 1 else "Other"

    def kinds(self, register: str) -> frozenset[str]:
        """All kinds that a register may hold, of FLOATS and "Other". What was loaded may be any: it says nothing."""
        if register not in self.known:
            found: set[str] = set()
            seen, open_ = {register}, [register]
            while open_:
                for statement in self.made[open_.pop()]:
                    sources = list(self.sources(statement))
                    if not sources:
                        found |= self.kind_made(statement)
                    open_ += [s for s in sources if s not in seen]
                    seen.update(sources)
            self.known[register] = frozenset(found)
        return self.known[register]

    def sources(self, statement: Statement) -> Iterator[str]:
        part = COPIES.get(statement.opcode.split(".", 1)[0])
        if part:
            for operand in statement.operands[part]:
                yield from (r for r in REGISTER.findall(operand) if r in self.made)

    def kind_made(self, statement: Statement) -> set[str]:
        name, *parts = statement.opcode.split(".")
        types = [part for part in parts if TYPE.fullmatch(part)]
        if name in LOADS or name in COPIES or not types:  # loaded, or a constant
            return set()
        return {FLOATS.get(types[-2] if name == "cvt" and len(types) > 1 else types[-1], "Other")}
