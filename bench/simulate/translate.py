"""Turns PTX into C++: a register becomes a local variable, a label a label, an instruction its table line's C++."""

import functools
import re
from collections import defaultdict
from collections.abc import Iterator

from bench.simulate import instructions, instructions_tensor
from bench.simulate.ptx import BYTES_OF, Block, Kernel, Label, Module, Place, PtxError, Statement, Variable, parse
from bench.simulate.table import PREDICATES, TYPE, WIDE, Instruction, OperandSyntax

HEADERS = ("runtime.hpp", "memory.hpp", "arithmetic.hpp")
MIN_DYNAMIC_ALIGN = 16
HALF_CLASS = {"f16": "F16", "bf16": "Bf16", "f16x2": "F16", "bf16x2": "Bf16"}
SPECIAL = {
    **{f"%{name}.{axis}": f"self.{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"},
    **{f"%cluster_ctaid.{axis}": "0u" for axis in "xyz"},  # every block is a cluster of its own
    **{f"%cluster_nctaid.{axis}": "1u" for axis in "xyz"},
    **{f"%clusterid.{axis}": f"self.ctaid.{axis}" for axis in "xyz"},
    **{f"%nclusterid.{axis}": f"self.nctaid.{axis}" for axis in "xyz"},
    "%cluster_ctarank": "0u",
    "%cluster_nctarank": "1u",
    "%is_explicit_cluster": "false",
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
    "%smid": "0u",  # one multiprocessor, that runs one block at a time
    "%nsmid": "1u",
    "%gridid": "0u",
    "%clock": "(u32)clock()",
    "%clock64": "clock()",
    "%globaltimer": "clock()",
    "WARP_SZ": "32u",
}


class UnknownInstruction(RuntimeError):
    """A kernel uses what the simulator's table does not have; the message names the instruction and its line."""


def translate(text: str) -> str:
    """The C++ of a PTX module. Raises UnknownInstruction or PtxError."""
    return ModuleWriter(parse(text)).cpp()


def _table() -> dict[str, list[Instruction]]:
    lines: dict[str, list[Instruction]] = defaultdict(list)
    for line in (*instructions.INSTRUCTIONS, *instructions_tensor.INSTRUCTIONS):
        lines[re.split(r"[.{]", line.opcode, maxsplit=1)[0]].append(line)
    return lines


TABLE = _table()


def find_line(statement: Statement) -> tuple[Instruction, dict[str, str]]:
    """The table's line for a statement, and the spelling of each of its choices."""
    lines = TABLE.get(statement.opcode.split(".", 1)[0], [])
    for line in lines:
        modifiers = line.match(statement.opcode, len(statement.operands))
        if modifiers is not None:
            return line, modifiers
    known = sorted({line.opcode for line in lines})
    raise unknown(statement, f"the table has {', '.join(known)}" if known else "the table has nothing like it")


def unknown(statement: Statement, why: str) -> UnknownInstruction:
    return UnknownInstruction(
        f"the simulator does not know `{statement}`, {statement.place} (PTX line {statement.ptx_line}): {why}"
    )


def identifier(name: str) -> str:
    """A PTX name as a C++ one."""
    return re.sub(r"\W", "_", name.replace("$", "S_").replace("%", ""))


def string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


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


class ModuleWriter:
    """C++ of one PTX module: its variables, its kernels, and the table that describes them to the runtime."""

    def __init__(self, module: Module):
        self.module = module
        self.places: list[tuple[Place, str]] = []
        self.headers = dict.fromkeys(HEADERS)
        self.globals = {v.name: v for v in module.variables if v.space in ("global", "const") and v.bytes}

    def cpp(self) -> str:
        kernels = [KernelWriter(self, kernel, i) for i, kernel in enumerate(self.module.kernels)]
        bodies = [kernel.cpp() for kernel in kernels]
        parts = [
            *(f'#include "{header}"' for header in self.headers),
            "using namespace sim;",
            *(self.definition(v) for v in self.globals.values()),
            *bodies,
            self.description(kernels),
        ]
        return "\n".join(parts) + "\n"

    def site(self, statement: Statement) -> int:
        """A number for an instruction, by which the runtime knows it."""
        self.places.append((statement.place, statement.opcode))
        return len(self.places) - 1

    def definition(self, variable: Variable) -> str:
        element = ctype("b" + re.sub(r"\D", "", variable.type))
        count = variable.bytes // BYTES_OF[variable.type]
        values = ", ".join(self.initial(variable, v) for v in variable.values)
        align, name = max(variable.align, 16), f"G_{identifier(variable.name)}"
        return f"alignas({align}) static {element} {name}[{count}] = {{{values}}};"

    def initial(self, variable: Variable, value: str) -> str:
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", value):
            return f"0x{value[2:]}"
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", value):
            element = ctype("b" + re.sub(r"\D", "", variable.type))
            return f"({element}){value.rstrip('U')}" + ("ull" if element == "u64" and value[0] != "-" else "")
        raise PtxError(f"the initial value {value} of {variable.name} is not simulated")

    def description(self, kernels: "list[KernelWriter]") -> str:
        places = [
            f"{{{string(p.file)}, {p.line}, {string(p.caller_file)}, {p.caller_line}, {string(opcode)}}}"
            for p, opcode in self.places
        ]
        variables = []
        for v in self.globals.values():
            name, writable = f"G_{identifier(v.name)}", str(v.space == "global").lower()
            variables.append(f"{{{string(v.name)}, {name}, sizeof {name}, {writable}}}")
        sizes = (len(places), len(variables), len(kernels))
        return "\n".join(
            (
                _array("Place", "places", places),
                _array("ModuleVariable", "variables", variables),
                *(_array("u32", f"bytes_{k.number}", [str(p.bytes) for p in k.kernel.parameters]) for k in kernels),
                _array("ModuleKernel", "kernels", [k.description() for k in kernels]),
                'extern "C" __attribute__((visibility("default"), used)) const Module sim_module;',
                "const Module sim_module = {{places, {}, variables, {}, kernels, {}}};".format(*sizes),
            )
        )


def _array(element: str, name: str, values: list[str]) -> str:
    # C++ has no empty arrays.
    return f"static const {element} {name}[] = {{\n" + ",\n".join(f"    {v}" for v in values or ["{}"]) + "\n};"


class KernelWriter:
    """C++ of one kernel: parameters and registers as locals, then its statements in order."""

    def __init__(self, module: ModuleWriter, kernel: Kernel, number: int):
        self.module, self.kernel, self.number = module, kernel, number
        self.parameters = {p.name: i for i, p in enumerate(kernel.parameters)}
        self.shared: dict[str, int] = {}
        self.static_shared = self.lay_out_shared()
        self.local_bytes = 0
        self.sums = instructions_tensor.wgmma_sums(kernel.body)
        self.declarations: dict[str, str] = {}  # C++ name -> C++ type, of registers in use
        self.arrays: list[str] = []

    def description(self) -> str:
        limit, wanted = (
            ", ".join(map(str, d or (0, 0, 0))) for d in (self.kernel.block_limit, self.kernel.block_wanted)
        )
        symbol, count = string(self.kernel.symbol), len(self.kernel.parameters)
        sizes = f"{count}, bytes_{self.number}, {self.static_shared}"
        return f"{{{symbol}, kernel_{self.number}, {sizes}, {{{limit}}}, {{{wanted}}}}}"

    def lay_out_shared(self) -> int:
        """Offsets of the shared variables that this kernel names; the dynamic array begins where they end."""
        text = " ".join(" ".join(s.operands) for s in self.kernel.body.statements())
        named = set(re.findall(r"[\w$]+", text))
        offset, dynamic_align, dynamic = 0, MIN_DYNAMIC_ALIGN, []
        for v in (*self.module.module.variables, *_shared_inside(self.kernel.body)):
            if v.space != "shared" or v.name not in named:
                continue
            if not v.bytes:
                dynamic.append(v.name)
                dynamic_align = max(dynamic_align, v.align)
                continue
            offset = -(-offset // v.align) * v.align
            self.shared[v.name] = offset
            offset += v.bytes
        offset = -(-offset // dynamic_align) * dynamic_align if dynamic or offset else 0
        self.shared.update(dict.fromkeys(dynamic, offset))
        return offset

    def cpp(self) -> str:
        statements = [*Scope(self, self.kernel.body, None, "").write()]
        registers = defaultdict(list)
        for name, kind in self.declarations.items():
            registers[kind].append(f"{name} = 0")
        lines = [
            f"static void kernel_{self.number}(Thread& self, u8* const* parameters) {{",
            "(void)self, (void)parameters;",
        ]
        if self.local_bytes:
            lines.append(f"alignas(64) u8 local_[{self.local_bytes}];")
            lines.append("self.local_begin = (u64)local_, self.local_bytes = sizeof local_;")
        lines += [f"{kind} {', '.join(names)};" for kind, names in registers.items()]
        return "\n".join([*lines, *self.arrays, *statements, "return;", "}"])


def _shared_inside(block: Block) -> Iterator[Variable]:
    yield from block.variables
    for item in block.body:
        if isinstance(item, Block):
            yield from _shared_inside(item)


class Scope:
    """A block of statements and the names it declares; inline assembly opens scopes of its own."""

    def __init__(self, kernel: KernelWriter, block: Block, outer: "Scope | None", prefix: str):
        self.kernel, self.block, self.outer, self.prefix = kernel, block, outer, prefix
        self.labels = block.labels()
        self.variables: dict[str, str] = {}  # .local and .param: name -> C++ address
        for v in block.variables:
            if v.space == "local":
                self.variables[v.name] = self.place_local(v)
            elif v.space == "param":
                self.variables[v.name] = self.place_parameter(v)

    def place_local(self, variable: Variable) -> str:
        kernel = self.kernel
        offset = -(-kernel.local_bytes // variable.align) * variable.align
        kernel.local_bytes = offset + variable.bytes
        return f"((u64)local_ + {offset})"

    def place_parameter(self, variable: Variable) -> str:
        """A call's parameter: a few bytes of the caller's."""
        name = f"{self.prefix}P_{identifier(variable.name)}"
        self.kernel.arrays.append(f"alignas(16) u8 {name}[{variable.bytes}];")
        return f"(u64){name}"

    def write(self) -> Iterator[str]:
        inner = 0
        for item in self.block.body:
            if isinstance(item, Label):
                yield f"{self.label(item.name)}: ;"
            elif isinstance(item, Block):
                yield from Scope(self.kernel, item, self, f"{self.prefix}i{inner}_").write()
                inner += 1
            else:
                yield self.statement(item)

    def statement(self, statement: Statement) -> str:
        line, modifiers = find_line(statement)
        use = Use(self, statement, line, modifiers)
        try:
            code = use.code()
        except ValueError as error:
            raise unknown(statement, str(error)) from error
        if line.header:
            self.kernel.module.headers[line.header] = None
        if statement.guard:
            return f"if ({'!' if statement.guard_negated else ''}{self.register(statement.guard)[0]}) {{ {code} }}"
        return code if code == ";" or code.startswith(("goto ", "return")) else f"{{ {code} }}"

    def find_register(self, name: str) -> tuple[str, str] | None:
        """The C++ name and the PTX type of a register."""
        scope: Scope | None = self
        while scope:
            if kind := scope.block.registers.get(name):
                cpp = f"{scope.prefix}r_{identifier(name)}"
                self.kernel.declarations[cpp] = register_type(kind)
                return cpp, kind
            scope = scope.outer
        return None

    def register(self, name: str) -> tuple[str, str]:
        found = self.find_register(name)
        if not found:
            raise PtxError(f"the register {name} is not declared")
        return found

    def label(self, name: str) -> str:
        scope: Scope | None = self
        while scope:
            if name in scope.labels:
                return f"{scope.prefix}L_{identifier(name)}"
            scope = scope.outer
        raise PtxError(f"the label {name} is not declared")

    def targets(self, name: str) -> list[str]:
        scope: Scope | None = self
        while scope:
            if name in scope.block.targets:
                return [self.label(t) for t in scope.block.targets[name]]
            scope = scope.outer
        raise PtxError(f"there is no list of branch targets {name}")

    def variable_address(self, name: str) -> str | None:
        """The address of a variable as C++: an offset for shared memory, a host address for the others."""
        scope: Scope | None = self
        while scope:
            if name in scope.variables:
                return scope.variables[name]
            scope = scope.outer
        kernel = self.kernel
        if name in kernel.shared:
            return f"{kernel.shared[name]}ull"
        if name in kernel.parameters:
            return f"(u64)parameters[{kernel.parameters[name]}]"
        return f"(u64)G_{identifier(name)}" if name in kernel.module.globals else None


class Use:
    """One instruction in place: what its table line may ask about operands, and the C++ that comes of it."""

    def __init__(self, scope: Scope, statement: Statement, line: Instruction, modifiers: dict[str, str]):
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
        return self.scope.kernel.module.site(self.statement)

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

    def register(self, name: str) -> str:
        """The C++ variable of an operand that is one register."""
        return self.scope.register(self.text(name))[0]

    def label(self, name: str) -> str:
        return self.scope.label(self.text(name))

    def branch_table(self, index: str, targets: str) -> str:
        cases = " ".join(f"case {i}: goto {t};" for i, t in enumerate(self.scope.targets(self.text(targets))))
        value = self.value(index)
        return f"switch ({value}) {{ {cases} default: bad_branch_index(self, {value}, {self.site}); }}"

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

    def call_parameters(self, name: str, types: tuple[str, ...]) -> list[str]:
        """The values of the first parameters of a call, which were stored before it."""
        names = [n.strip() for n in self.text(name).strip("()").split(",")]
        return [f"*(const {t}*)({self.scope.variable_address(n)})" for n, t in zip(names, types, strict=False)]

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
