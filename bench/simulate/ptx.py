"""Reads PTX text into kernels, variables and statements, each with the line of the .cu (or .py) that it came from."""

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES_OF = {
    **{f"{kind}{bits}": bits // 8 for kind in "bus" for bits in (8, 16, 32, 64)},
    **{"f16": 2, "bf16": 2, "tf32": 4, "f32": 4, "f64": 8, "f16x2": 4, "bf16x2": 4, "b128": 16, "pred": 1},
}


MAX_INLINED = 16  # functions within functions, of which the caller's line is looked for


class PtxError(ValueError):
    """PTX that the simulator cannot read; the message names the line."""


@dataclass(frozen=True)
class Place:
    """Where an instruction comes from: a source line, and the line that called it where it was inlined."""

    file: str = "ptx"
    line: int = 0
    caller_file: str = ""
    caller_line: int = 0

    def __str__(self) -> str:
        inlined = f" (inlined at {self.caller_file}:{self.caller_line})" if self.caller_file else ""
        return f"{self.file}:{self.line}{inlined}"


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Statement:
    """One instruction: `@!%p add.f32 %f1, %f2, %f3` has guard ("%p", True), an opcode and operands."""

    opcode: str
    operands: tuple[str, ...]
    place: Place
    ptx_line: int
    guard: str = ""
    guard_negated: bool = False

    def __str__(self) -> str:
        return f"{self.opcode} {', '.join(self.operands)}".strip()


@dataclass(frozen=True)
class Variable:
    """A variable in a state space. `bytes` is 0 for the dynamic shared array; `values` are what it begins with."""

    space: str
    name: str
    type: str
    align: int
    bytes: int
    values: tuple[str, ...] = ()


@dataclass
class Block:
    """Statements between braces, with the names that only they see."""

    body: "list[Statement | Label | Block]" = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: list[Variable] = field(default_factory=list)  # .local, .param and .shared
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)  # .branchtargets lists of brx.idx

    def labels(self) -> set[str]:
        return {item.name for item in self.body if isinstance(item, Label)}

    def statements(self) -> Iterator[Statement]:
        for item in self.body:
            if isinstance(item, Statement):
                yield item
            elif isinstance(item, Block):
                yield from item.statements()


@dataclass
class Kernel:
    symbol: str
    parameters: list[Variable]
    body: Block
    block_limit: tuple[int, int, int] | None = None  # .maxntid: at most so many threads
    block_wanted: tuple[int, int, int] | None = None  # .reqntid: exactly this block
    cluster: tuple[int, int, int] | None = None  # .reqnctapercluster: blocks of a cluster
    explicit_cluster: bool = False  # .explicitcluster: where the kernel does not say the size, the launch must
    most_ranks: int = 0  # .maxclusterrank


@dataclass
class Function:
    """A device function that was not inlined; `results` has no more than one variable."""

    symbol: str
    parameters: list[Variable]
    results: list[Variable]
    body: Block


@dataclass
class Module:
    kernels: list[Kernel] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    functions: dict[str, Function] = field(default_factory=dict)
    target: str = ""  # "sm_90a"


TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<loc>\.loc\b[^\n;]*)
    | (?P<file>\.file\b[^\n]*)
    | (?P<section>\.section\s+[.\w]+\s*\{[^}]*\})
    | (?P<version>\.(?:version|target|address_size)\b[^\n]*)
    | (?P<targets>(?P<list>[\w$]+):\s*\.branchtargets\b(?P<labels>[^;]*);)
    | (?P<label>[\w$]+)\s*:(?!:)
    | (?P<open>\{)
    | (?P<close>\})
    | (?P<entry>(?:\.(?:visible|weak|extern)\s+)*\.entry\s+(?P<symbol>[\w$]+)\s*
        (?:\((?P<parameters>[^)]*)\))?(?P<directives>[^{;]*)\{)
    | (?P<function>(?:\.(?:visible|weak|extern)\s+)*\.func\b[^{;]*(?P<function_end>[{;]))
    | (?P<statement>(?:"[^"]*"|[^;{}"]|\{[^{}]*\})*;)
    """,
    re.VERBOSE,
)
LOC = re.compile(r"\.loc\s+(\d+\s+\d+\s+\d+)(?:.*inlined_at\s+(\d+\s+\d+\s+\d+))?")
STATEMENT = re.compile(r"(?:@(?P<not>!?)(?P<guard>[%\w$]+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*)$", re.DOTALL)
VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|extern|common)\s+)*\.(?P<space>global|const|shared|local|param)\s+(?P<middle>(?:\.\w+\s+(?:\d+\s+)?)*?)"
    r"\.(?P<type>[a-z]+\d+(?:x2)?)\s+(?:\.ptr\b[^,;]*?\s)?(?P<name>[\w$%]+)\s*(?P<extent>(?:\[\d*\])*)\s*(?:=\s*(?P<values>.*))?$",
    re.DOTALL,
)


def parse(text: str) -> Module:
    """The module in `text`. Raises PtxError on what it cannot read."""
    return _Reader(text).module()


class _Reader:
    """One pass over the text; `.loc` directives set the place of the statements after them."""

    def __init__(self, text: str):
        # Comments become spaces of the same number of lines, so that line numbers stay right.
        text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
        self.text = re.sub(r"//[^\n]*", "", text)
        names = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', self.text, flags=re.MULTILINE)
        self.files = {number: path.rsplit("/", 1)[-1] for number, path in names}
        self.line_starts = [0, *(m.end() for m in re.finditer("\n", self.text))]
        self.place = Place()
        self.callers: dict[str, str] = {}  # "file line column" -> where that was last inlined, or ""

    def module(self) -> Module:
        module = Module()
        if found := re.search(r"^\s*\.target\s+(\w+)", self.text, flags=re.MULTILINE):
            module.target = found[1]
        position = 0
        while position < len(self.text):
            token, position = self.token(position)
            if token.lastgroup == "entry" or token["entry"]:
                self.place = Place()
                body, position = self.block(position)
                module.kernels.append(_kernel(token, body))
            elif token["function"]:
                if token["function_end"] == "{":  # else it is only announced
                    self.place = Place()
                    body, position = self.block(position)
                    function = _function(token["function"], body)
                    module.functions[function.symbol] = function
            elif token["statement"]:
                if variable := _variable(token[0].rstrip("; \n")):
                    module.variables.append(variable)
            elif token["open"] or token["close"] or token["label"]:
                raise PtxError(f"PTX line {self.line(token.start())}: {token[0]!r} outside of a function")
        return module

    def block(self, position: int) -> tuple[Block, int]:
        """The block whose opening brace ends at `position`, and where it ends."""
        block = Block()
        while position < len(self.text):
            token, position = self.token(position)
            if token["close"]:
                return block, position
            if token["open"]:
                inner, position = self.block(position)
                block.body.append(inner)
            elif token["label"]:
                block.body.append(Label(token["label"]))
            elif token["targets"]:
                block.targets[token["list"]] = tuple(x.strip() for x in token["labels"].split(","))
            elif token["loc"]:
                self.place = self.read_place(token[0])
            elif token["statement"]:
                self.statement(block, token[0][:-1].strip(), self.line(token.start()))
        raise PtxError("a function without its closing brace")

    def statement(self, block: Block, text: str, ptx_line: int) -> None:
        if text.startswith(".reg"):
            block.registers.update(_registers(text))
        elif text.startswith("."):
            if variable := _variable(text):
                block.variables.append(variable)
        elif text:
            found = STATEMENT.match(text)
            if not found:
                raise PtxError(f"PTX line {ptx_line}: {text!r} is no instruction")
            operands = tuple(split_operands(found["operands"]))
            guard = found["guard"] or ""
            block.body.append(Statement(found["opcode"], operands, self.place, ptx_line, guard, bool(found["not"])))

    def token(self, position: int) -> tuple[re.Match, int]:
        found = TOKEN.match(self.text, position)
        if not found:
            line = self.text[position:].split("\n", 1)[0]
            raise PtxError(f"PTX line {self.line(position)}: cannot read {line!r}")
        return found, found.end()

    def line(self, position: int) -> int:
        return bisect.bisect_right(self.line_starts, position)

    def read_place(self, text: str) -> Place:
        found = LOC.match(text)
        if not found or found[1].split()[1] == "0":
            return self.place
        here, caller = (" ".join(position.split()) if position else "" for position in found.groups())
        self.callers[here] = caller
        # Where a function is inlined into one that is inlined itself, the kernel's own line is the one to show.
        for _ in range(MAX_INLINED):
            caller = self.callers.get(caller) or caller
        file, line, _ = here.split()
        caller_file, caller_line, _ = caller.split() if caller else ("", "0", "")
        return Place(self.files.get(file, "ptx"), int(line), self.files.get(caller_file, ""), int(caller_line))


def split_operands(text: str) -> list[str]:
    """Split at commas outside of brackets: `{%f1, %f2}, [%rd1+4]` has two operands."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _registers(text: str) -> Iterator[tuple[str, str]]:
    """`.reg .b32 %r<3>, x` declares %r0, %r1, %r2 and x; cuda_fp16.hpp writes `.reg.b32 x`."""
    found = re.match(r"\.reg\s*(?:\.v\d\s*)?\.(\w+)\s+(.*)", text, flags=re.DOTALL)
    if not found:
        raise PtxError(f"cannot read {text!r}")
    for name in found[2].split(","):
        many = re.fullmatch(r"\s*([\w$%]+)<(\d+)>\s*", name)
        names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]
        yield from ((n, found[1]) for n in names)


def _variable(text: str) -> Variable | None:
    """A variable's declaration; None for other directives (.pragma, .maxnreg …), which say nothing about meaning."""
    found = VARIABLE.match(text)
    if not found:
        if re.match(r"(?:\.\w+\s+)*\.(global|const|shared|local|param)\b", text):
            raise PtxError(f"cannot read the declaration {text!r}")
        return None
    element = BYTES_OF[found["type"]]
    count = 1
    for extent in re.findall(r"\[(\d*)\]", found["extent"]):
        count *= int(extent or 0)
    align = re.search(r"\.align\s+(\d+)", found["middle"])
    values = tuple(x for x in re.split(r"[\s,{}]+", found["values"] or "") if x)
    return Variable(
        found["space"], found["name"], found["type"], int(align[1]) if align else element, element * count, values
    )


def _kernel(head: re.Match, body: Block) -> Kernel:
    parameters = [_variable(p) for p in split_operands(head["parameters"] or "")]
    if None in parameters:
        raise PtxError(f"cannot read the parameters of {head['symbol']}")
    return Kernel(
        head["symbol"],
        [p for p in parameters if p],
        body,
        _three(head["directives"], "maxntid"),
        _three(head["directives"], "reqntid"),
        _three(head["directives"], "reqnctapercluster"),
        ".explicitcluster" in head["directives"],
        (_three(head["directives"], "maxclusterrank") or (0,))[0],
    )


HEAD = re.compile(r"\.func\s*(?:\((?P<results>[^)]*)\))?\s*(?P<symbol>[\w$]+)\s*(?:\((?P<parameters>[^)]*)\))?")


def _function(head: str, body: Block) -> Function:
    found = HEAD.search(head)
    if not found:
        raise PtxError(f"cannot read the function {head[:80]!r}")
    lists = [[_variable(p) for p in split_operands(found[name] or "")] for name in ("parameters", "results")]
    if any(v is None for variables in lists for v in variables):
        raise PtxError(f"cannot read the parameters of {found['symbol']}")
    parameters, results = ([v for v in variables if v] for variables in lists)
    return Function(found["symbol"], parameters, results, body)


def _three(directives: str, name: str) -> tuple[int, int, int] | None:
    found = re.search(rf"\.{name}\s+(\d+(?:\s*,\s*\d+)*)", directives)
    if not found:
        return None
    numbers = [int(x) for x in found[1].split(",")]
    return (*numbers, 1, 1)[:3]  # type: ignore[return-value]
