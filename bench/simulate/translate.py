"""Turns PTX into C++: a register becomes a local variable, a label a label, an instruction its table line's C++."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator

from bench.simulate import instructions, instructions_tensor
from bench.simulate.bases import Bases
from bench.simulate.ptx import BYTES_OF, Block, Kernel, Label, Module, Place, PtxError, Statement, Variable, parse
from bench.simulate.table import Instruction
from bench.simulate.use import Use, ctype, identifier, register_type, unknown
from bench.simulate.values import Values

HEADERS = ("runtime.hpp", "memory.hpp", "arithmetic.hpp")
MIN_DYNAMIC_ALIGN = 16


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
    opcode = in_order(statement.opcode)
    for line in lines:
        modifiers = line.match(opcode, len(statement.operands))
        if modifiers is not None:
            return line, modifiers
    known = sorted({line.opcode for line in lines})
    raise unknown(statement, f"the table has {', '.join(known)}" if known else "the table has nothing like it")


ORDERED = ("ld", "st", "atom", "red")
QUALIFIERS = (
    {"weak", "volatile", "relaxed", "acquire", "release", "acq_rel"},
    {"cta", "cluster", "gpu", "sys"},
    {"global", "shared", "shared::cta", "local", "const", "param"},
)


def in_order(opcode: str) -> str:
    """Order, scope and space of a memory instruction as the manual has them.

    ptxas takes them in any order: Triton writes atom.global.acq_rel.gpu.cas and atom.global.gpu.acq_rel.exch.
    """
    name, *parts = opcode.split(".")
    if name not in ORDERED:
        return opcode
    leading = list(itertools.takewhile(lambda part: any(part in q for q in QUALIFIERS), parts))
    ordered = sorted(leading, key=lambda part: next(i for i, q in enumerate(QUALIFIERS) if part in q))
    return ".".join([name, *ordered, *parts[len(leading) :]])


def string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class ModuleWriter:
    """C++ of one PTX module: its variables, its kernels, and the table that describes them to the runtime."""

    def __init__(self, module: Module):
        self.module = module
        self.places: list[tuple[Place, str, str, int]] = []
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

    def site(self, statement: Statement, value: str = "Other", bases: int = 0) -> int:
        """A number for an instruction, by which the runtime knows it; `value` is what it hands to others, `bases` the
        parameters that its address comes from."""
        self.places.append((statement.place, statement.opcode, value, bases))
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
            f"{{{string(p.file)}, {p.line}, {string(p.caller_file)}, {p.caller_line}, "
            f"{string(opcode)}, (u32)Value::{value}, {bases}ull}}"
            for p, opcode, value, bases in self.places
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
        self.values = Values(kernel.body)
        self.bases = Bases(kernel.body, self.parameters)
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
        self.behind: set[str] = set()  # labels that were written
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
                self.behind.add(item.name)
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

    def is_behind(self, name: str) -> bool:
        scope: Scope | None = self
        while scope and name not in scope.labels:
            scope = scope.outer
        return scope is not None and name in scope.behind

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
