"""One instruction in place: what its line of the table asks, and the C++ that comes of it."""

import functools
import re
from typing import Any, Protocol

from bench.simulate.ptx import BYTES_OF, Statement
from bench.simulate.table import PREDICATES, TYPE, WIDE, Instruction, OperandSyntax

HALF_CLASS = {"f16": "F16", "bf16": "Bf16", "f16x2": "F16", "bf16x2": "Bf16"}
SPECIAL = {
    **{f"%{name}.{axis}": f"self.{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"},
    **{
        f"%{name}.{axis}": f"self.{name}.{axis}"
        for name in ("cluster_ctaid", "cluster_nctaid", "clusterid", "nclusterid")
        for axis in "xyz"
    },
    "%cluster_ctarank": "self.rank",
    "%cluster_nctarank": "self.cluster_blocks",
    "%is_explicit_cluster": "self.explicit_cluster",
    "%laneid": "self.lane",
    "%warpid": "self.warp",
    "%nwarpid": "((self.ntid.x * self.ntid.y * self.ntid.z + 31) / 32)",
    "%lanemask_eq": "(1u << self.lane)",
    "%lanemask_lt": "((1u << self.lane) - 1)",
    "%lanemask_le": "(~0u >> (31 - self.lane))",
    "%lanemask_gt": "(~1u << self.lane)",
    "%lanemask_ge": "(~0u << self.lane)",
    "%dynamic_smem_size": "self.dynamic_shared",
    "%total_smem_size": "self.total_shared",
    "%aggr_smem_size": "(self.total_shared + kReservedBytes)",  # and what the system has of it
    "%smid": "multiprocessor(self)",  # as on a card, though one block runs at a time
    "%nsmid": "kMultiprocessors",
    **{f"%envreg{i}": f"environment({i})" for i in range(32)},  # 1 and 2: where a cooperative launch counts its blocks
    **{f"%reserved_smem_offset_{name}": "kReservedShared" for name in ("begin", "0", "1")},
    **{f"%reserved_smem_offset_{name}": "(kReservedShared + kReservedBytes)" for name in ("end", "cap")},
    "%gridid": "grid_number()",
    "%clock": "(u32)clock()",
    "%clock64": "clock()",
    "%globaltimer": "global_timer()",
    "WARP_SZ": "32u",
}


class UnknownInstruction(RuntimeError):
    """A kernel uses what the simulator's table does not have; the message names the instruction and its line."""


# Chapters of the PTX ISA manual (9.0), and beginnings of opcodes; the longest that fits counts.
HEADINGS = (
    (
        "9.7.1 Integer Arithmetic Instructions",
        "add sub mul mad mul24 mad24 sad div rem abs neg min max popc clz bfind fns brev bfe bfi szext bmsk dp4a dp2a",
    ),
    (
        "9.7.2 Extended-Precision Integer Arithmetic Instructions",
        "add.cc addc sub.cc subc mad.lo.cc mad.hi.cc madc",
    ),
    ("9.7.3 Floating Point Instructions", "testp copysign fma rcp sqrt rsqrt sin cos lg2 ex2 tanh"),
    ("9.7.6 Comparison and Selection Instructions", "set setp selp slct"),
    ("9.7.8 Logic and Shift Instructions", "and or xor not cnot lop3 shf shl shr"),
    (
        "9.7.9 Data Movement and Conversion Instructions",
        "mov shfl prmt ld ldu st prefetch prefetchu applypriority discard createpolicy isspacep cvta cvt mapa"
        " getctarank multimem",
    ),
    (
        "9.7.9.25 Data Movement and Conversion Instructions: Asynchronous copy",
        "cp st.async st.bulk red.async tensormap",
    ),
    ("9.7.10 Texture Instructions", "tex tld4 txq istypep"),
    ("9.7.11 Surface Instructions", "suld sust sured suq"),
    ("9.7.12 Control Flow Instructions", "bra brx call ret exit"),
    (
        "9.7.13 Parallel Synchronization and Communication Instructions",
        "bar barrier membar fence atom red vote match activemask redux elect griddepcontrol mbarrier"
        " clusterlaunchcontrol",
    ),
    ("9.7.14 Warp Level Matrix Multiply-Accumulate Instructions", "wmma mma ldmatrix stmatrix movmatrix"),
    ("9.7.15 Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions", "wgmma"),
    ("9.7.16 TensorCore 5th Generation Family Instructions", "tcgen05"),
    ("9.7.17 Stack Manipulation Instructions", "stacksave stackrestore alloca"),
    ("9.7.18 Video Instructions", "vadd vsub vabsdiff vmin vmax vshl vshr vmad vset vadd2 vadd4"),
    ("9.7.19 Miscellaneous Instructions", "brkpt nanosleep pmevent trap setmaxnreg"),
)
CHAPTERS = {name: heading for heading, names in HEADINGS for name in names.split()}


def chapter(opcode: str) -> str:
    """Where the manual has an instruction; "" where its name is none of the manual's."""
    parts = opcode.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((CHAPTERS[name] for name in names if name in CHAPTERS), "")


def unknown(statement: Statement, why: str) -> UnknownInstruction:
    section = chapter(statement.opcode)
    manual = f" (PTX ISA, {section})" if section else ""
    return UnknownInstruction(
        f"the simulator does not know `{statement}`, {statement.place} (PTX line {statement.ptx_line}): {why}{manual}"
    )


def identifier(name: str) -> str:
    """A PTX name as a C++ one."""
    return re.sub(r"\W", "_", name.replace("$", "S_").replace("%", ""))


def ctype(ptx_type: str) -> str:
    """The C++ type of a value; halves are their bits."""
    if ptx_type == "pred":
        return "bool"
    if ptx_type[0] in "us" or ptx_type in ("f32", "f64"):
        return ptx_type
    return f"u{8 * BYTES_OF[ptx_type]}"


def register_type(ptx_type: str) -> str:
    """The C++ type of a register: raw bits, except for f32 and f64."""
    return ctype("b" + ptx_type[1:]) if ptx_type[0] in "us" else ctype(ptx_type)


class Block(Protocol):
    """What an instruction asks of the block that it stands in."""

    @property
    def kernel(self) -> Any:
        """With its `sums`, `parameters`, `values` and `bases`, and `module.site` of a statement."""

    def find_register(self, name: str) -> tuple[str, str] | None: ...

    def register(self, name: str) -> tuple[str, str]:
        """The C++ name and the PTX type of a register; PtxError where there is none."""
        ...

    def product_register(self, name: str) -> str | None: ...

    def label(self, name: str) -> str:
        """A label as C++."""
        ...

    def is_behind(self, name: str) -> bool:
        """Whether a label stands before this instruction."""
        ...

    def targets(self, name: str) -> list[str]:
        """The labels of a branch table."""
        ...

    def variable_address(self, name: str) -> str | None: ...


class Use:
    """One instruction in place: what its table line may ask about operands, and the C++ that comes of it."""

    def __init__(self, scope: Block, statement: Statement, line: Instruction, modifiers: dict[str, str]):
        self.scope, self.statement, self.line, self.modifiers = scope, statement, line, modifiers
        given = list(statement.operands)
        self.operands = {o.name: (o, given[i] if i < len(given) else None) for i, o in enumerate(line.operands)}

    def code(self) -> str:
        code = self.line.code
        if callable(code):
            return code(self)
        filled = self.fill(code)
        if "{d=" in code or not (
            result := next((o for o in self.line.operands if o.is_result and o.kind == "value"), None)
        ):
            return re.sub(r"\{([dpq])=([^{}]*)\}", lambda m: self.assign(m[1], m[2]), filled)
        return self.assign(result.name, filled)

    def fill(self, template: str) -> str:
        return re.sub(r"\{(\w+)(?::(\w+))?\}", lambda m: self.placeholder(m[1], m[2]), template)

    def placeholder(self, name: str, form: str | None) -> str:
        if name == "site":
            return str(self.site)
        if name == "W":
            return ctype(WIDE[self.modifiers["T"]])
        if name in self.line.choices:
            spelling = self.modifiers.get(name, "")
            if form == "half":
                return HALF_CLASS[spelling]
            return ctype(spelling) if name in self.line.types else self.line.choices[name].get(spelling, "")
        return self.address(name) if form == "address" else self.value(name)

    @functools.cached_property
    def site(self) -> int:
        kernel = self.scope.kernel
        kind, bases = kernel.values.exchanged(self.statement), kernel.bases.mask(self.statement)
        return kernel.module.site(self.statement, kind, bases)

    # --- what the table's functions ask ---

    def text(self, name: str) -> str:
        """An operand as PTX has it; of `d|p`, the part called `name`; "" where it is missing."""
        for syntax, given in self.operands.values():
            if name in (syntax.name, syntax.second):
                first, _, second = (given or "").partition("|") if syntax.second else (given or "", "", "")
                return first if name == syntax.name else second
        return ""

    def type_of(self, name: str) -> str:
        """The PTX type of an operand, or that which a choice spells."""
        if name in self.modifiers:
            return self.modifiers[name]
        if name in PREDICATES:
            return "pred"
        kind = self.syntax(name).type
        if kind == "W":
            return WIDE[self.modifiers["T"]]
        if kind:
            return self.modifiers.get(kind, kind)
        return self.modifiers.get("T") or self.last_type()

    def ctype(self, ptx_type: str) -> str:
        return ctype(ptx_type)

    def value(self, name: str) -> str:
        syntax, given = self.operands[name]
        if given is None:
            return syntax.default or ""
        return self.operand(given, self.type_of(name))

    def values(self, name: str, ptx_type: str | None = None) -> list[str]:
        """The elements of a vector operand, or the one value."""
        return [self.operand(e, ptx_type or self.type_of(name)) for e in self.elements(name)]

    def count(self, name: str) -> int:
        return len(self.elements(name))

    def address(self, name: str) -> str:
        base, offset = self.split_address(name)
        if not offset:
            return self.operand(base, "u64")
        found = self.scope.find_register(base)
        if found and register_type(found[1]) == "u32":  # an address of 32 bits wraps there
            return f"(u64)(u32)({self.operand(base, 'u32')} + {offset})"
        return f"{self.operand(base, 'u64')} + {offset}"

    def assign(self, name: str, expression: str) -> str:
        return self.assign_to(self.text(name), self.type_of(name), expression)

    def assign_all(self, name: str, expressions: list[str], ptx_type: str | None = None) -> str:
        kind = ptx_type or self.type_of(name)
        pairs = zip(self.elements(name), expressions, strict=True)
        return " ".join(self.assign_to(register, kind, e) for register, e in pairs)

    def follow_sum(self, to: str, source: str) -> str:
        """What a copy of a register needs besides, where a wgmma may still have to write the source."""
        if self.text(source) not in self.scope.kernel.sums:
            return ""
        return f" follow_sum(self, &{self.register(to)}, &{self.register(source)});"

    def product_register(self, name: str) -> str | None:
        """The C++ variable that remembers how a register of wgmma was used last; None of any other register."""
        return self.scope.product_register(name)

    def register(self, name: str) -> str:
        """The C++ variable of an operand that is one register."""
        return self.scope.register(self.text(name))[0]

    def label(self, name: str) -> str:
        return self.scope.label(self.text(name))

    def jump(self, name: str) -> str:
        """A jump; one that goes back may be a loop without end."""
        jump = f"goto {self.label(name)};"
        return f"jump_back(self, {self.site}); {jump}" if self.scope.is_behind(self.text(name)) else jump

    def branch_table(self, index: str, targets: str) -> str:
        cases = " ".join(f"case {i}: goto {t};" for i, t in enumerate(self.scope.targets(self.text(targets))))
        value = self.value(index)
        back = f"jump_back(self, {self.site}); "
        return f"{back}switch ({value}) {{ {cases} default: bad_branch_index(self, {value}, {self.site}); }}"

    def load_parameter(self, name: str, memory: str) -> str | None:
        """A parameter's value where the operand names the parameter; None where it is an address in a register."""
        base, offset = self.split_address(name)
        variable = self.scope.variable_address(base)
        return f"*(const {memory}*)({variable} + {offset})" if variable else None

    def store_parameter(self, name: str, memory: str, value: str) -> str:
        base, offset = self.split_address(name)
        variable = self.scope.variable_address(base)
        if not variable or base in self.scope.kernel.parameters:
            raise ValueError("only a call's parameters can be stored to")
        return f"*({memory}*)({variable} + {offset}) = {value};"

    # --- operands ---

    def syntax(self, name: str) -> OperandSyntax:
        return next(s for s, _ in self.operands.values() if name in (s.name, s.second))

    def last_type(self) -> str:
        types = [part for part in self.statement.opcode.split(".") if TYPE.fullmatch(part)]
        if not types:
            raise ValueError("the table's line does not say the operand's type")
        return types[-1]

    def elements(self, name: str) -> list[str]:
        text = self.text(name)
        return [e.strip() for e in text.strip("{}").split(",")] if text.startswith("{") else [text]

    def split_address(self, name: str) -> tuple[str, int]:
        found = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:([+-])\s*(-?\w+))?\s*\]", self.text(name))
        if not found:
            raise ValueError(f"the address {self.text(name)} is not understood")
        offset = int(found[3], 0) if found[3] else 0
        return found[1], -offset if found[2] == "-" else offset

    def operand(self, text: str, ptx_type: str) -> str:
        """An operand as a C++ value of a PTX type."""
        if ptx_type == "pred":
            return self.predicate(text)
        wanted = ctype(ptx_type)
        if text in SPECIAL:
            return f"({wanted}){SPECIAL[text]}"
        if found := self.scope.find_register(text):
            name, kind = found
            return _converted(name, register_type(kind), wanted)
        if constant := _constant(text, wanted):
            return constant
        base, _, offset = text.partition("+")
        if address := self.scope.variable_address(base.strip()):
            return f"({wanted})({address} + {int(offset or '0', 0)})"
        raise ValueError(f"the operand {text} is not understood")

    def predicate(self, text: str) -> str:
        if text.startswith("!"):
            return f"!{self.predicate(text[1:])}"
        if text in ("0", "1", "-1"):
            return "false" if text == "0" else "true"
        if text in SPECIAL:
            return SPECIAL[text]
        return self.scope.register(text)[0]

    def assign_to(self, register: str, ptx_type: str, expression: str) -> str:
        if register in ("_", ""):
            return f"(void)({expression});"
        name, kind = self.scope.register(register)
        target, value = register_type(kind), ctype(ptx_type)
        if target == value or target == "bool":
            return f"{name} = {expression};"
        if target in ("f32", "f64") or value in ("f32", "f64"):
            return f"{name} = bits<{target}>(({value})({expression}));"
        return f"{name} = ({target})({value})({expression});"  # a smaller signed value is extended by its sign


def _converted(name: str, held: str, wanted: str) -> str:
    if held == wanted:
        return name
    if "f" in held or "f" in wanted:
        width = held[1:]
        if held[0] == "f" and wanted[0] != "f":
            return f"({wanted})bits<u{width}>({name})"
        return f"bits<{wanted}>({name})"
    return f"({wanted}){name}"


def _constant(text: str, wanted: str) -> str | None:
    """A literal: 0f3F800000 and 0d… are the bits of a float, the rest are integers."""
    if found := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
        width = 32 if found[1] in "fF" else 64
        literal = f"0x{found[2]}" + ("u" if width == 32 else "ull")
        return f"bits<f{width}>({literal})" if wanted == f"f{width}" else f"({wanted}){literal}"
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        value = int(text.rstrip("U"), 0 if not re.fullmatch(r"-?0\d+U?", text) else 8)
        if wanted in ("f32", "f64"):
            return f"bits<{wanted}>({value & (2 ** int(wanted[1:]) - 1):#x}{'u' if wanted == 'f32' else 'ull'})"
        return f"({wanted}){value & (2**64 - 1):#x}ull"
    return None
