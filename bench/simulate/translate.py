"""Turns PTX into C++: a register becomes a local variable, a label a label, an instruction its table line's C++."""

import re
from collections import defaultdict
from collections.abc import Iterator

from bench.simulate import instructions, instructions_cluster, instructions_rare, instructions_tensor
from bench.simulate.bases import NAME, Bases
from bench.simulate.ptx import (
    BYTES_OF,
    Block,
    Function,
    Kernel,
    Label,
    Module,
    Place,
    PtxError,
    Statement,
    Variable,
    parse,
)
from bench.simulate.table import Instruction
from bench.simulate.use import UnknownInstruction, Use, ctype, identifier, register_type, unknown
from bench.simulate.values import Values

HEADERS = ("runtime.hpp", "memory.hpp", "arithmetic.hpp")
ASYNC_PROXY = ("hopper.hpp", "cluster.hpp")  # TMA, bulk copies and wgmma are instructions of these
MIN_DYNAMIC_ALIGN = 16


def translate(text: str) -> str:
    """The C++ of a PTX module. Raises UnknownInstruction or PtxError."""
    return ModuleWriter(parse(text)).cpp()


def _table() -> dict[str, list[Instruction]]:
    lines: dict[str, list[Instruction]] = defaultdict(list)
    tables = (instructions, instructions_tensor, instructions_cluster, instructions_rare)
    for line in (line for table in tables for line in table.INSTRUCTIONS):
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
    {"global", "shared", "shared::cta", "shared::cluster", "local", "const", "param"},
)

OF_MATRICES = dict.fromkeys(
    ("ldmatrix", "stmatrix"),
    ({"sync"}, {"aligned"}, {"m8n8"}, {"x1", "x2", "x4"}, {"trans"}, {"shared", "shared::cta"}, {"b16"}),
)


def in_order(opcode: str) -> str:
    """Order, scope and space of a memory instruction as the manual has them.

    ptxas takes them in any order: Triton writes atom.global.acq_rel.gpu.cas and atom.global.gpu.acq_rel.exch, the
    barrier of CUDA's cooperative groups is atom.add.release.gpu.u32.
    """
    name, *parts = opcode.split(".")
    if name in OF_MATRICES:  # ldmatrix.sync.aligned.x4.m8n8.shared.b16, as many write it
        ranks = {part: next((i for i, q in enumerate(OF_MATRICES[name]) if part in q), -1) for part in parts}
        return ".".join([name, *sorted(parts, key=lambda part: ranks[part])]) if -1 not in ranks.values() else opcode
    if name not in ORDERED or "async" in parts:
        return opcode
    told = [part for part in parts if any(part in q for q in QUALIFIERS)]
    ordered = sorted(told, key=lambda part: next(i for i, q in enumerate(QUALIFIERS) if part in q))
    return ".".join([name, *ordered, *(part for part in parts if part not in told)])


def string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return '"' + escaped.replace("\x1e", "\\036") + '"'


class ModuleWriter:
    """C++ of one PTX module: its variables, its kernels, and the table that describes them to the runtime."""

    def __init__(self, module: Module):
        self.module = module
        self.places: list[tuple[Place, str, str, int]] = []
        self.headers = dict.fromkeys(HEADERS)
        self.globals = {v.name: v for v in module.variables if v.space in ("global", "const") and v.bytes}
        self.numbers = {name: i for i, name in enumerate(module.functions)}  # of functions: their addresses
        self.refused: dict[str, str] = {}  # by kernel: what it needs and the simulator does not have

    def cpp(self) -> str:
        kernels, bodies = [], []
        for i, kernel in enumerate(self.module.kernels):
            writer, sites = KernelWriter(self, kernel, i), len(self.places)
            try:
                bodies.append(writer.cpp())
                kernels.append(writer)
            except UnknownInstruction as error:  # the kernel may not be the one that is launched
                del self.places[sites:]
                self.refused[kernel.symbol] = str(error)
        if self.refused and not kernels:
            raise UnknownInstruction(next(iter(self.refused.values())))
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
        if found := re.fullmatch(r"(?:generic\()?([A-Za-z_$%][\w$]*)\)?(?:\+(\d+))?", value):
            if found[1] in self.numbers and not found[2] and BYTES_OF[variable.type] == 8:
                return function_address(self.numbers[found[1]])
            if found[1] in self.globals and BYTES_OF[variable.type] == 8:
                return f"(u64)G_{identifier(found[1])} + {found[2] or 0}"
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
        async_proxy = str(any(header in self.headers for header in ASYNC_PROXY)).lower()
        sizes = (len(places), len(variables), len(kernels), async_proxy)
        return "\n".join(
            (
                _array("Place", "places", places),
                _array("ModuleVariable", "variables", variables),
                *(_array("u32", f"bytes_{k.number}", [str(p.bytes) for p in k.kernel.parameters]) for k in kernels),
                _array("ModuleKernel", "kernels", [k.description() for k in kernels]),
                'extern "C" __attribute__((visibility("default"), used)) const char sim_refused[];',
                f"const char sim_refused[] = {string(_entries(self.refused))};",
                'extern "C" __attribute__((visibility("default"), used)) const char sim_includes[];',
                f"const char sim_includes[] = {string('layerbench includes:' + ' '.join(self.headers))};",
                'extern "C" __attribute__((visibility("default"), used)) const Module sim_module;',
                "const Module sim_module = {{places, {}, variables, {}, kernels, {}, {}}};".format(*sizes),
            )
        )


def _entries(texts: dict[str, str]) -> str:
    """For the launcher: pairs of a short text and a long one."""
    return "".join(f"{name}\t{text}\x1e" for name, text in texts.items())


def function_address(number: int) -> str:
    """A function's, as C++: no memory lies there."""
    return f"{0x5F00_0000_0000 + 16 * number:#x}ull"


def _array(element: str, name: str, values: list[str]) -> str:
    # C++ has no empty arrays.
    return f"static const {element} {name}[] = {{\n" + ",\n".join(f"    {v}" for v in values or ["{}"]) + "\n};"


class BodyWriter:
    """C++ of a kernel's or a function's body: registers as locals, then its statements in order."""

    parameters: dict[str, str]  # by PTX name, the C++ of their address
    results: dict[str, str]
    is_function = False

    def __init__(self, module: ModuleWriter, kernel: "KernelWriter", body: Block, parameters: dict[str, int]):
        self.module, self.kernel_writer, self.body = module, kernel, body
        self.local_bytes = 0
        self.sums = instructions_tensor.wgmma_sums(body)
        # What the caller of a function did to them is not known.
        self.products = frozenset() if self.is_function else instructions_tensor.product_registers(body)
        self.uses: dict[str, None] = {}  # of those, the C++ variables
        self.values = Values(body)
        self.bases = Bases(body, parameters)
        self.declarations: dict[str, str] = {}  # C++ name -> C++ type, of registers in use
        self.arrays: list[str] = []

    @property
    def shared(self) -> dict[str, int]:
        return self.kernel_writer.offsets

    def call(self, name: str) -> str | None:
        """The C++ function of a device function, or None where the module has none of that name."""
        if name not in self.module.module.functions:
            return None
        return self.kernel_writer.function(name)

    def inside(self, opening: str) -> str:
        statements = [*Scope(self, self.body, None, "").write()]
        registers = defaultdict(list)
        for name, kind in self.declarations.items():
            registers[kind].append(f"{name} = 0")
        lines = [opening, "u32 carry_ = 0; (void)carry_;"]
        if any(s.opcode.startswith("wgmma.") for s in self.body.statements()):
            lines.append("u32 fences_ = 1, waited_ = 0; (void)fences_, (void)waited_;")
        if self.uses:
            lines.append(f"WgmmaUse {', '.join(self.uses)};")
        if self.local_bytes:
            lines.append(f"alignas(64) u8 local_[{self.local_bytes}];")
            lines.append("LocalFrame frame_(self, local_, sizeof local_);")
        lines += [f"{kind} {', '.join(names)};" for kind, names in registers.items()]
        return "\n".join([*lines, *self.arrays, *statements, "return;", "}"])


class FunctionWriter(BodyWriter):
    """A device function, as one kernel calls it: shared variables lie where that kernel has them."""

    is_function = True

    def __init__(self, module: ModuleWriter, kernel: "KernelWriter", function: Function):
        super().__init__(module, kernel, function.body, {})
        self.function = function
        self.parameters = {p.name: f"(u64)arguments[{i}]" for i, p in enumerate(function.parameters)}
        self.results = {p.name: f"(u64)results[{i}]" for i, p in enumerate(function.results)}

    @property
    def name(self) -> str:
        return f"call_{self.kernel_writer.number}_{self.module.numbers[self.function.symbol]}"

    @property
    def head(self) -> str:
        return f"static void {self.name}(Thread& self, u8* const* parameters, u8* const* arguments, u8* const* results)"

    def cpp(self) -> str:
        return self.inside(f"{self.head} {{\n(void)self, (void)parameters, (void)arguments, (void)results;")


class KernelWriter(BodyWriter):
    """A kernel, and the functions that it may call."""

    def __init__(self, module: ModuleWriter, kernel: Kernel, number: int):
        numbers = {p.name: i for i, p in enumerate(kernel.parameters)}
        super().__init__(module, self, kernel.body, numbers)
        self.kernel, self.number = kernel, number
        self.parameters = {name: f"(u64)parameters[{i}]" for name, i in numbers.items()}
        self.results = {}
        self.functions: dict[str, FunctionWriter] = {}
        self.waiting: list[FunctionWriter] = []
        self.offsets: dict[str, int] = {}
        self.in_tables: set[str] = set()  # functions whose addresses lie in memory that the kernel reads
        self.static_shared = self.lay_out_shared()

    def description(self) -> str:
        kernel = self.kernel
        wanted = (kernel.block_limit, kernel.block_wanted, kernel.cluster)
        limits = ", ".join(f"{{{', '.join(map(str, d or (0, 0, 0)))}}}" for d in wanted)
        symbol, count = string(kernel.symbol), len(kernel.parameters)
        sizes = f"{count}, bytes_{self.number}, {self.static_shared}"
        cluster = f"{str(kernel.explicit_cluster).lower()}, {kernel.most_ranks}"
        return f"{{{symbol}, kernel_{self.number}, {sizes}, {limits}, {cluster}}}"

    def reachable(self) -> list[Block]:
        """This kernel's body, and those of all functions that it may call, by name or by address."""
        functions = self.module.module.functions
        found, waiting = {}, [self.kernel.body]
        tables = {v.name: {x for text in v.values for x in NAME.findall(text)} for v in self.module.globals.values()}
        seen: set[str] = set()
        while waiting:
            body = waiting.pop()
            found[id(body)] = body
            names = {n for s in body.statements() for operand in s.operands for n in NAME.findall(operand)}
            while names - seen:
                new = names - seen
                seen |= new
                waiting += [functions[n].body for n in new if n in functions]
                listed = {n for table in new & set(tables) for n in tables[table]}
                self.in_tables |= listed & set(functions)
                names |= listed
        return list(found.values())

    def lay_out_shared(self) -> int:
        """Offsets of the shared variables that this kernel names; the dynamic array begins where they end."""
        bodies = self.reachable()
        named = {name for b in bodies for s in b.statements() for o in s.operands for name in NAME.findall(o)}
        offset, dynamic_align, dynamic = 0, MIN_DYNAMIC_ALIGN, []
        for v in (*self.module.module.variables, *(v for b in bodies for v in _shared_inside(b))):
            if v.space != "shared" or v.name not in named:
                continue
            if not v.bytes:
                dynamic.append(v.name)
                dynamic_align = max(dynamic_align, v.align)
                continue
            offset = -(-offset // v.align) * v.align
            self.offsets[v.name] = offset
            offset += v.bytes
        offset = -(-offset // dynamic_align) * dynamic_align if dynamic or offset else 0
        self.offsets.update(dict.fromkeys(dynamic, offset))
        return offset

    def function(self, symbol: str) -> str:
        """The C++ function of a device function, which is written with this kernel."""
        if symbol not in self.functions:
            self.functions[symbol] = writer = FunctionWriter(self.module, self, self.module.module.functions[symbol])
            self.waiting.append(writer)
        return self.functions[symbol].name

    def cpp(self) -> str:
        own = self.inside(
            f"static void kernel_{self.number}(Thread& self, u8* const* parameters) {{\n(void)self, (void)parameters;"
        )
        for symbol in sorted(self.in_tables):
            self.function(symbol)
        bodies = []
        while self.waiting:
            bodies.append(self.waiting.pop().cpp())
        heads = [f"{f.head};" for f in self.functions.values()]
        heads.append(f"static void call_{self.number}_by_address({BY_ADDRESS});")
        return "\n".join([*heads, own, *bodies, self.dispatcher()])

    def dispatcher(self) -> str:
        """Calls by address: any function whose address the kernel may have, if it takes and answers as many values."""
        cases = []
        for symbol, writer in self.functions.items():
            address, function = function_address(self.module.numbers[symbol]), writer.function
            sizes = f"{len(function.parameters)}, {len(function.results)}"
            cases.append(
                f"if (address == {address} && is_call(self, {sizes}, given, wanted, site)) "
                f"return {writer.name}(self, parameters, arguments, results);"
            )
        return "\n".join(
            (
                f"static void call_{self.number}_by_address({BY_ADDRESS}) {{",
                *cases,
                "no_function(self, address, site);",
                "}",
            )
        )


BY_ADDRESS = (
    "Thread& self, u8* const* parameters, u64 address, u8* const* arguments, u8* const* results, u32 given, "
    "u32 wanted, Site site"
)


def _shared_inside(block: Block) -> Iterator[Variable]:
    yield from block.variables
    for item in block.body:
        if isinstance(item, Block):
            yield from _shared_inside(item)


class Scope:
    """A block of statements and the names it declares; inline assembly opens scopes of its own."""

    def __init__(self, kernel: BodyWriter, block: Block, outer: "Scope | None", prefix: str):
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
            code = instructions_tensor.watched(use, code) if self.kernel.products else code
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

    def product_register(self, name: str) -> str | None:
        if name not in self.kernel.products or not (found := self.find_register(name)):
            return None
        variable = f"u_{found[0]}"
        self.kernel.uses[variable] = None
        return variable

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
            return kernel.parameters[name]
        if name in kernel.results:
            return kernel.results[name]
        if name in kernel.module.numbers:
            kernel.call(name)
            return function_address(kernel.module.numbers[name])
        return f"(u64)G_{identifier(name)}" if name in kernel.module.globals else None
