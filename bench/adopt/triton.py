"""The variant of a Triton kernel that exists: its functions copied, its parameters matched to a layer's contract.

Grid, tiles and strides are those of the Python that launches it, where that says them of sizes (python.py);
else they are guesses by the names, each marked.
"""

import ast
import builtins
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.adopt import TILE, older
from bench.adopt.cuda import Writer
from bench.adopt.launcher import MOST_NEIGHBOURS
from bench.adopt.names import ALL, others, plain_name
from bench.adopt.python import (
    OPTIONS,
    Launch,
    Said,
    Teller,
    first_configuration,
    heuristics_of,
    launch_of,
    of_meta,
)
from bench.adopt.source import Read
from bench.adopt.uses import Use
from bench.adopt.variant import DECIDE, NO_GUESS, Adopted, Guess, Whole
from bench.cli import USAGE, CannotGoOn
from kernels.cuda.cplusplus import Unit
from kernels.cuda.signature import Parameter, Signature
from reference import contract

TUNED = ("autotune", "heuristics")
KNOWN = {"num_warps", "num_stages"}
ADDED = (r"atomic_\w+",)
READ, WRITTEN = ("load", "make_block_ptr"), ("store", *ADDED)
# What a norm's kernel for inference leaves out, a program a row: the contract has it for backward.
LEFT = """

@triton.jit
def left_kernel(x, mean, rstd, columns, eps, MEAN: tl.constexpr, KEEP_MEAN: tl.constexpr, KEEP_RSTD: tl.constexpr,
                BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        total += tl.load(x + row * columns + first + lanes, mask=first + lanes < columns, other=0).to(tl.float32)
    middle = tl.sum(total) / columns if MEAN else 0.0
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        inside = first + lanes < columns
        away = tl.load(x + row * columns + first + lanes, mask=inside, other=0).to(tl.float32) - middle
        squares += tl.where(inside, away * away, 0)
    if KEEP_MEAN:
        tl.store(mean + row, middle)
    if KEEP_RSTD:
        tl.store(rstd + row, 1 / tl.sqrt(tl.sum(squares) / columns + eps))"""
# What an attention for inference does not keep, a program a query.
LSE = """

@triton.jit
def left_kernel(q, k, lse, q0, q1, q2, k0, k1, k2, heads, group, keys, size, CAUSAL: tl.constexpr, SIZE: tl.constexpr,
                BLOCK: tl.constexpr):
    t, head, sequence = tl.program_id(0), tl.program_id(1) % heads, tl.program_id(1).to(tl.int64) // heads
    lanes, columns = tl.arange(0, BLOCK), tl.arange(0, SIZE)
    x = tl.load(q + sequence * q0 + t * q1 + head * q2 + columns, mask=columns < size, other=0).to(tl.float32)
    end = t + 1 if CAUSAL else keys
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, end, BLOCK):
        inside = first + lanes < end
        place = k + sequence * k0 + head // group * k2 + (first + lanes)[:, None] * k1 + columns[None, :]
        y = tl.load(place, mask=inside[:, None] & (columns < size)[None, :], other=0).to(tl.float32)
        score = tl.sum(x[None, :] * y, axis=1) / tl.sqrt(size.to(tl.float32))
        larger = tl.where(inside, tl.maximum(top, score), top)
        total = tl.where(inside, total * tl.exp(top - larger) + tl.exp(score - larger), total)
        top = larger
    most = tl.max(top)
    total = tl.where(total == 0, 0, total * tl.exp(top - most))  # a lane without keys
    tl.store(lse + (sequence * heads + head) * tl.num_programs(0) + t, most + tl.log(tl.sum(total)))"""
# What a cross entropy leaves out that keeps nothing for backward, a program a row.
ROWS_LSE = """

@triton.jit
def left_kernel(x, lse, columns, stride, BLOCK: tl.constexpr):
    row, lanes = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in range(0, columns, BLOCK):
        inside = first + lanes < columns
        value = tl.load(x + row * stride + first + lanes, mask=inside, other=float("-inf")).to(tl.float32)
        top = tl.maximum(top, value)
    most = tl.max(top)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        inside = first + lanes < columns
        value = tl.load(x + row * stride + first + lanes, mask=inside, other=float("-inf")).to(tl.float32)
        total += tl.where(inside, tl.exp(value - most), 0)
    tl.store(lse + row, most + tl.log(tl.sum(total)))"""
GROUPED = re.compile(
    r"(?i)kv_?(n_?|num_?)?head|heads?_?kv|n_?kv\b|num_kv|kv_?h\b|group"
)  # heads of k and v, or how many share
INNER, OUTER = ("feat", "col", "cols", "n"), ("row", "rows", "batch", "m")  # axes, in the names of strides
GUESSES = {"BLOCK": "1024", "GROUP": "8", "NUM": "4"}

# Of a kernel that works in place: what it is to change.
COPIED = """

@triton.jit
def copy_kernel(out, x, N, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < N), mask=i < N)"""


def adopted_triton(
    source: Path, layer: str, kernel: str | None, guess: Guess = NO_GUESS, whole: Whole | None = None
) -> Adopted:
    """The variant's text. CannotGoOn where there is no such kernel, or several and none is named."""
    try:
        tree = _decorated(_together(source))
    except (SyntaxError, ValueError) as error:
        raise CannotGoOn(f"{source.name}: {error}") from error
    jitted = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef) and _is_jit(n)}
    called = {n.func.id for f in jitted.values() for n in ast.walk(f)
              if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
    kernels = [name for name in jitted if name not in called]
    if kernel is None and not kernels:
        raise CannotGoOn(f"{source.name} has no kernel (no @triton.jit function that no other calls)", USAGE)
    if kernel is None and len(kernels) > 1:
        raise CannotGoOn(f"{source.name} has {len(kernels)} kernels: --kernel {'|'.join(kernels)}", USAGE)
    entry = kernel or kernels[0]
    if entry not in jitted:
        raise CannotGoOn(f"{source.name} has no @triton.jit function {entry} (it has: {', '.join(jitted)})")
    module = contract.load(layer)
    choices = [
        _TritonWriter(source, tree, jitted[entry], p, contract.pass_of(module, p), guess)
        for p in contract.phases_of(module)
    ]
    writer = min(choices, key=lambda w: w.lacking)
    writer.whole = whole
    return _as_it_was(writer.adopted())


REMOVED = "the kernel wants what Triton {} has no more, and older ones have"


def _as_it_was(made: Adopted) -> Adopted:
    """With Triton's language as it was for a kernel that wants it so."""
    import triton

    if not older.wants(made.text):
        return made
    if made.text.count(f"\n{older.IMPORTED}\n") != 1:
        return made.noted(REMOVED.format(triton.__version__), DECIDE)
    text = made.text.replace(f"\n{older.IMPORTED}\n", f"\n{older.LANGUAGE}\n")
    return replace(made, text=text, files={**made.files, Path(older.NAME): older.module().encode()})


def _decorated(tree: ast.Module) -> ast.Module:
    """`kernel = triton.jit(function)` as a function of that name with a decorator."""
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    for node in list(tree.body):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and (name := _binds(node))):
            continue
        call = node.value
        of = [functions.get(a.id) for a in call.args if isinstance(a, ast.Name)]
        if len(of) == 1 and of[0] and re.search(r"\bjit\b", ast.unparse(call.func)):
            of[0].name, of[0].decorator_list = name, [ast.parse("triton.jit", mode="eval").body]
            tree.body.remove(node)
    return tree


def _is_jit(node: ast.FunctionDef) -> bool:
    return any(_is_jit_itself(d) for d in node.decorator_list)


ABOVE = 6  # folders up from a source, in which what it imports of its own package is looked for


def _together(source: Path, seen: set[Path] | None = None) -> ast.Module:
    """A file with what it imports of its own package's files in front, each of them once."""
    seen = {source.resolve()} if seen is None else seen
    tree = ast.parse(source.read_text())
    tree.body = list(_flat(tree.body))
    own = {_binds(n) for n in tree.body}
    front: list[ast.stmt] = []
    for node in list(tree.body):
        path = _imported(node, source) if isinstance(node, ast.ImportFrom) else None
        if not path or path in seen or len(seen) > MOST_NEIGHBOURS:
            continue
        assert isinstance(node, ast.ImportFrom)
        seen.add(path)
        there = _together(path, seen)
        front += [n for n in there.body if not _binds(n) or _binds(n) not in own]
        own |= {_binds(n) for n in there.body}
        tree.body.remove(node)
        for name in node.names:
            if name.asname:
                front.append(ast.parse(f"{name.asname} = {name.name}").body[0])
    tree.body = [*front, *tree.body]
    return tree


def _flat(body: Sequence[ast.stmt], taken: set[str] | None = None) -> Iterator[ast.stmt]:
    """Statements without the conditions that they stand behind; of several for a name, the first that can be had."""
    taken = set() if taken is None else taken
    for node in _one_by_one(body):
        if isinstance(node, ast.If | ast.Try):
            handlers = [n for h in node.handlers for n in h.body] if isinstance(node, ast.Try) else []
            inner = taken | {_binds(n) for n in body} - {""}
            yield from _flat([*node.body, *node.orelse, *handlers], inner)
            taken |= inner & {"triton", "tl"}  # not to be made up where they are there
        elif isinstance(node, ast.Import | ast.ImportFrom) and _of_triton(node):
            names = {a.asname or a.name for a in node.names}
            if not names <= taken and _can_be_had(node):
                taken |= names
                yield node
        elif not _binds(node) or _binds(node) not in taken:
            yield node


def _one_by_one(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """`import torch, triton` as two imports."""
    for node in body:
        yield from ([ast.Import([a]) for a in node.names] if isinstance(node, ast.Import) else [node])


def _is_jit_itself(decorator: ast.expr) -> bool:
    return bool(re.search(r"\bjit\b", ast.unparse(decorator)))


def _imported(node: ast.ImportFrom, source: Path) -> Path | None:
    """The file that `from package.module import …` means, in the folders above the source."""
    parts = (node.module or "").split(".") if node.module else []
    if node.level:
        folders = [source.resolve().parents[node.level - 1]] if node.level <= len(source.resolve().parents) else []
    else:
        folders = list(source.resolve().parents[:ABOVE]) if parts and not _there(parts[0]) else []
    for folder in folders:
        for path in (folder.joinpath(*parts).with_suffix(".py"), folder.joinpath(*parts, "__init__.py")):
            if parts and path.is_file():
                return path.resolve()
    return None


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _of_triton(node: ast.Import | ast.ImportFrom) -> bool:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
    return all(n.split(".")[0] in ("triton", "math") for n in names)


def _can_be_had(node: ast.Import | ast.ImportFrom) -> bool:
    try:
        exec(ast.unparse(node), {})  # of Triton's own
    except ImportError:
        return False
    return True


def _needed(tree: ast.Module, jitted: dict[str, ast.FunctionDef], entry: str, helpers: set[str]) -> list[ast.stmt]:
    """The statements that the kernel and its launch need, in order: imports, constants, functions; tuning left out."""
    for function in jitted.values():  # what only a tuner is given is not needed either
        of_triton = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) and _of_triton(n)]
        own = {(a.asname or a.name).partition(".")[0] for n in of_triton for a in n.names}
        function.decorator_list = [
            d  # one of another package's (a cache of launches) is not needed either
            for d in function.decorator_list
            if not any(t in ast.unparse(d) for t in TUNED) and (_is_jit_itself(d) or _identifiers(d) & own)
        ]
        for call in [d for d in function.decorator_list if isinstance(d, ast.Call)]:
            call.keywords = [k for k in call.keywords if k.arg != "launch_metadata"]
    wanted, waiting = set[str](), [entry, *helpers]
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        wanted.add(name)
        for node in tree.body:
            if _binds(node) == name and (name in jitted or name in helpers or not isinstance(node, ast.FunctionDef)):
                used = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
                if isinstance(node, ast.FunctionDef):  # its own q is not the script's
                    own = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                    used = [n for n in used if n not in own]
                waiting += used
                if name in helpers:
                    helpers = helpers | set(used)
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) and _of_triton(n)]
    kept: list[ast.stmt] = list({ast.unparse(n): n for n in imports}.values())
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) or _binds(node) not in wanted:
            continue
        if isinstance(node, ast.FunctionDef):
            if node.name not in jitted and node.name not in helpers:
                continue
            if node.name not in jitted:
                node = _bare(node)
        kept.append(_of_libdevice(node) or node)
    return kept


def _of_libdevice(node: ast.stmt) -> ast.stmt | None:
    """`rsqrt = look_up("rsqrt")` as the import of what it looks for."""
    call = node.value if isinstance(node, ast.Assign) else None
    if not (isinstance(call, ast.Call) and len(call.args) == 1 and isinstance(call.args[0], ast.Constant)):
        return None
    from triton.language.extra import libdevice

    name = str(call.args[0].value)
    if not name.isidentifier() or not hasattr(libdevice, name):
        return None
    return ast.ImportFrom("triton.language.extra.libdevice", [ast.alias(name, _binds(node))], 0)


def _unknown(text: str) -> list[str]:
    """Names that a module uses and nowhere binds."""
    tree = ast.parse(text)
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    bound |= {
        a.arg for n in ast.walk(tree) if isinstance(n, ast.arguments) for a in (*n.posonlyargs, *n.args, *n.kwonlyargs)
    }
    bound |= {(a.asname or a.name).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)
              for a in n.names}  # fmt: skip
    used = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    return [name for name in dict.fromkeys(used) if name not in bound and not hasattr(builtins, name)]


def _bare(function: ast.FunctionDef) -> ast.FunctionDef:
    """Without annotations and decorators, whose names the variant does not import."""
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    function.returns, function.decorator_list = None, []
    return function


def _binds(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else ""


class _TritonWriter(Writer):
    def __init__(
        self, source: Path, tree: ast.Module, function: ast.FunctionDef, phase: str, p: contract.Pass, guess: Guess
    ):
        self.function, self.tree = function, tree
        arguments = [*function.args.args, *function.args.kwonlyargs]
        self.constants = [a.arg for a in arguments if a.annotation and "constexpr" in ast.unparse(a.annotation)]
        self.every = [a.arg for a in arguments]
        names = [name for name in self.every if name not in self.constants]
        self.source = source
        self.python = launch_of(tree, function.name, self.every) or self._near()
        tensors, reached = [t.name for t in (*p.inputs, *p.outputs)], _reached(function, READ + WRITTEN)
        written = _reached(function, WRITTEN)
        numbers = _counted(function)
        pointers = {n for n in names if n in reached or (n not in numbers and _is_pointer(n, tensors))}
        parameters = [
            Parameter(n, "", pointer=n in pointers, const=bool(written & pointers) and n not in written) for n in names
        ]
        signature = Signature((), tuple(parameters), name=function.name)
        loaded = _reached(function, (*READ, *ADDED))
        uses = {n: Use(n in loaded, n in written, asked=True) for n in pointers if n in loaded | written}
        super().__init__(
            source,
            Unit(),
            Read(signature, {}, signature, uses),
            phase,
            p,
            None,
            function.name,
            function.name,
            guess=guess,
        )
        self.unsure: set[str] = set()  # tensors whose second axis is heads or positions, by a guess
        if not any(q.pointer for q in parameters):
            self.lacking += 10

    def _near(self) -> Launch | None:
        """The launch of a kernel whose file has none: in a file beside it."""
        launch = re.compile(rf"\b{re.escape(self.function.name)}\W*\[")
        near = [p for p in sorted(self.source.parent.glob("*.py")) if p.resolve() != self.source.resolve()]
        for path in near[:MOST_NEIGHBOURS]:
            if launch.search(path.read_text(errors="replace")):
                tree = _decorated(_together(path))
                if found := launch_of(tree, self.function.name, self.every):
                    self.tree = tree
                    return found
        return None

    @property
    def launched(self) -> bool:
        return self.python is not None

    def _grid_words(self) -> set[str]:
        assert self.python
        made = {_binds(n): n.value for n in self.python.before if isinstance(n, ast.Assign)}
        words = _identifiers(self.python.grid)
        while more := {n for w in words if w in made for n in _identifiers(made[w])} - words:
            words |= more
        return words

    def says(self) -> set[str]:
        text = ast.unparse(self.function) + (ast.unparse(self.python.function) if self.python else "")
        return super().says() | ({"NKV"} if GROUPED.search(text) else set())

    def _halves_it(self, said: str) -> bool:
        nodes = [self.function, *([self.python.grid, *self.python.before] if self.python else [])]
        return any(re.search(rf"\b{re.escape(said)} // 2\b", ast.unparse(n)) for n in nodes)

    def names_of(self, q: Parameter) -> list[str]:
        """Its own, and what its launcher calls what it gives."""
        given = self.python.given.get(q.name) if self.python else None
        return [q.name, *([given.id] if isinstance(given, ast.Name) else [])]

    def adopted(self) -> Adopted:
        """The variant, launched as its source does, or by guesses."""
        jitted = {n.name: n for n in self.tree.body if isinstance(n, ast.FunctionDef) and _is_jit(n)}
        tuned, heuristics = first_configuration(self.function, self.tree), heuristics_of(self.function, self.tree)

        def further(values: Mapping[str, str | None]) -> dict[str, str]:
            known = {**tuned, **values}
            for name, function in heuristics.items():
                known |= {name: value} if (value := of_meta(function, known)) else {}
            return {name: value for name, value in known.items() if value}

        said = self._said(self.python, further) if self.python else Said(values={**further({})})
        self.lines += said.decide
        told: dict[str, str] = {}
        for number, q in enumerate(self.signature.parameters):
            known = None if q.pointer else said.values.get(q.name)
            told[q.name] = self._pointer(number, q, said) if q.pointer else known or self._value(number, q)
        if not self.python:
            said.values |= {n: v for n, v in further(told).items() if n not in told}
        for name in self.constants:
            told[name] = said.values.get(name) or self._constant_value(name)
        options = {n: said.values.get(n) for n in OPTIONS if n not in self.every}
        first = min((self.every.index(name) for name in self.constants), default=len(self.every))
        values = [told[n] if i < first else f"{n}={told[n]}" for i, n in enumerate(self.every)]
        values += [f"{n}={v}" for n, v in options.items() if v]
        grid = self._grid_of(said, told)
        body = [*said.lines, *self.lines]
        launch = f"{self.function.name}[{grid}]({', '.join(values)})"
        if self.loop:
            body = [
                f"for i in range(len({self.loop})):",
                *(f"    {line}" for part in body for line in part.splitlines()),
            ]
            launch = f"    {launch}"
        called = set(re.findall(r"\w+", " ".join((launch, *body)))) - jitted.keys()
        helpers = (said.helpers | called) & {n.name for n in self.tree.body if isinstance(n, ast.FunctionDef)}
        helpers |= said.helpers & {_binds(n) for n in self.tree.body}
        return self.text(_needed(self.tree, jitted, self.function.name, helpers), body, launch)

    def _said(self, launch: Launch, further: Callable[[Mapping[str, str | None]], dict[str, str]]) -> Said:
        taken = {s for t in self.tensors.values() for s in t.shape.split()} | self.tensors.keys()
        teller = Teller(
            launch, self.tree, self.matched, self.tensors, [q.name for q in self.signature.parameters if q.pointer],
            self.size, taken | set(self.given.positional()), f"multiprocessors({self.first()})", self.guess.heads,
        )  # fmt: skip
        said = teller.tell(further)
        self.unsure = teller.unsure
        if self.unsure and not self.guess.tried:
            told, second = ", ".join(sorted(self.unsure)), "heads" if self.guess.heads else "positions"
            self.lines.append(f"# {DECIDE}: whether the second axis of {told} is {second}, as here")
        return said

    def size(self, name: str) -> str | None:
        """Of the launcher's parameters."""
        return f"({self.columns()},)" if name == "normalized_shape" else self.scalar(name)

    def _halves(self) -> list[str]:
        given = self.python.given if self.python else {}
        told = " ".join(ast.unparse(value) for value in given.values())
        halves = [ast.unparse(given[q]) for q, name in self.matched.items() if name in ("gate", "up") and q in given]
        if len(halves) != 2 or not all(f"{half}.stride(" in told for half in halves):
            return super()._halves()
        x = self.given.inputs[-1].name  # a row's stride is told: gate and up may be parts of a row
        return [f"gate, up = {x}.chunk(2, dim=-1)"] if self.given is not self.p else []

    def moves(self) -> list[str]:
        return []  # its strides say how its tensors lie

    def _workspace(self) -> list[str]:
        size = f"4 * {' * '.join(self.scratch)}"
        return ["def workspace(shape, phase):", f"    return {size}  # {self.not_lse}", "", ""]

    def _sees_heads(self) -> set[str]:
        return self.unsure

    def _pointer(self, number: int, q: Parameter, said: Said) -> str:
        """A tensor as the launcher sees it; what is none of the contract's and known is None, or a number."""
        return said.values.get(q.name) or self.argument(number, q)

    def _grid_of(self, said: Said, told: dict[str, str]) -> str:
        if said.grid:
            if re.search(r"\b_unknown\b", said.grid):
                said.grid = None
            else:
                return said.grid
        rows = any("BLOCK" not in line and DECIDE not in line for line in self.lines)
        block = next((name for name in self.constants if name.upper().startswith("BLOCK")), "")
        main = self.tensors.get(self.main(), contract.Tensor(f"{self.loop}[i]", "N"))
        flat = len(main.shape.split()) == 1 or any(plain_name(q.name) in ALL for q in self.signature.parameters)
        if flat and block and not rows:
            grid = f"(triton.cdiv({main.name}.numel(), {told[block]}),)"
        else:
            grid = f"({main.name}.numel() // {main.name}.shape[-1],)"
        self.lines.append(f"grid = {grid}  # {DECIDE}: how many programs")
        return "grid"

    def _rounds(self) -> str:
        """The line of its dtypes, where its body tells: it rounds all that it stores to one, or has tl.dot make TF32 of
        fp32, which is Triton's default."""
        jitted = {n.name: n for n in self.tree.body if isinstance(n, ast.FunctionDef)}
        functions, called = [self.function], list[ast.Call]()
        for function in functions:  # and what it calls
            inside = [n for n in ast.walk(function) if isinstance(n, ast.Call)]
            called += inside
            names = [n.func.id for n in inside if isinstance(n.func, ast.Name)]
            functions += [f for n in names if (f := jitted.get(n)) and f not in functions]
        rounded = {_binds(n): n.value for n in ast.walk(self.function) if isinstance(n, ast.Assign) and _binds(n)}
        found = set()
        for node in called:
            if ast.unparse(node.func) == "tl.store" and len(node.args) > 1:
                value = node.args[1]
                value = rounded.get(value.id, value) if isinstance(value, ast.Name) else value
                told = re.search(r"(?:\.to\(|cast\(.*, )tl\.(float16|bfloat16)\)$", ast.unparse(value))
                found.add(told[1] if told else "")
        if len(found) == 1 and (stored := {"float16": "fp16", "bfloat16": "bf16"}.get(found.pop(), "")):
            return f'\nDTYPES = ("{stored}",)  # it rounds to that'
        multiplied = {a for n in called if ast.unparse(n.func) == "tl.dot" for a in map(ast.unparse, n.args[:2])}
        cast = re.compile(r"\.to\(tl\.(float16|bfloat16)\)$")
        values = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.Assign) and _binds(n) in multiplied]
        made = {m[1] for text in (*multiplied, *(ast.unparse(n.value) for n in values)) if (m := cast.search(text))}
        if len(made) == 1 and (only := {"float16": "fp16", "bfloat16": "bf16"}[made.pop()]):
            return f'\nDTYPES = ("{only}",)  # it multiplies what it rounds to that'
        dots = [{k.arg for k in n.keywords} for n in called if ast.unparse(n.func) == "tl.dot"]
        exact = {"input_precision", "allow_tf32"}
        if dots and not any(exact & given for given in dots):
            return '\nDTYPES = ("bf16", "fp16")  # its tl.dot rounds fp32 to TF32'
        return ""

    def text(self, kept: Sequence[ast.stmt], lines: Sequence[str], launch: str) -> Adopted:
        refusals, sizes = [*self._halves(), *self.refusals()], list(self.sizes(" ".join((*lines, launch))))
        if self.whole:
            known = {n for line in sizes for n in re.findall(r"\w+", line.partition(" = ")[0])}
            more = {s for t in self.tensors.values() for s in t.shape.split()} - known
            sizes += self.sizes(" ".join(more))
            sizes += self._in_whole(sizes)
        for out, first in self.copies.items():
            lines = [
                *lines,
                f"copy_kernel[(triton.cdiv({out}.numel(), 1024),)]({out}, {first}, {out}.numel(), BLOCK=1024)",
            ]
        if self._left():
            lines = [*lines, launch]
            launch = self._statistics()
        body = [f"    {line}" for part in (*refusals, *sizes, *lines, launch) for line in part.splitlines()]
        workspace = ", workspace" if self.not_lse else ""
        names = f"{', '.join(self.given.positional())}, *, {', '.join(self.given.keyword())}{workspace}"
        parts = [ast.unparse(node) for node in kept]
        whole_text = "\n".join((*parts, *body))
        imports = [part for part in parts if part.startswith(("import", "from"))]
        imports += [f"import {name}" for name in ("math", "torch", "triton")
                    if re.search(rf"(?<!\.)\b{name}\.", whole_text) and f"import {name}" not in imports]  # fmt: skip
        if (self._left() or self.copies) and "import triton.language as tl" not in imports:
            imports.append("import triton.language as tl")
        if "Unavailable" in whole_text:
            imports.append("from kernels import Unavailable")
        if "multiprocessors(" in whole_text:
            imports.append("from kernels.cuda import multiprocessors")
        by = f"; launched as its {self.python.function.name} does" if self.python else "; launched by guesses"
        text = [
            f'"""{self.function.name} of {self.source.name}{by}."""',
            "",
            *imports,
            *([rounds] if (rounds := self._rounds()) else []),
            *(f"\n{part}" if part[0] != "@" else f"\n\n{part}" for part in parts
              if not part.startswith(("import", "from"))),
            *([self._made()] if self._left() else []),
            *([COPIED] if self.copies else []),
            "",
            "",
            *(self._workspace() if self.not_lse else []),
            f"def {self.phase}({names}):",
            *body,
            "",
        ]  # fmt: skip
        for name in _unknown("\n".join(text)):
            text.insert(2, f"{name} = None  # {DECIDE}: the source has it from elsewhere")
        whole = "\n".join(text)
        decide = [line.strip() for line in whole.splitlines() if DECIDE in line]
        return Adopted(whole, {}, decide, self.phase, self.opens())

    def _made(self) -> str:
        """The kernel of ours that makes it."""
        return LEFT if self._left() != ["lse"] else ROWS_LSE if "logits" in self.tensors else LSE

    def _statistics(self) -> str:
        """The launch of ours that makes what a kernel for inference does not keep."""
        of, left = self._normed(), self._left()
        if left == ["lse"] and "logits" in self.tensors:
            return "left_kernel[(lse.numel(),)](logits, lse, V, logits.shape[-1], BLOCK=1024)"
        if left == ["lse"]:
            return (
                "left_kernel[(q.shape[1], q.shape[0] * q.shape[2])](q, k, lse, *q.stride()[:3], *k.stride()[:3], "
                "q.shape[2], q.shape[2] // k.shape[2], q.shape[1], q.shape[3], CAUSAL=causal, "
                "SIZE=triton.next_power_of_2(q.shape[3]), BLOCK=32)"
            )
        told = [n if n in left else of for n in ("mean", "rstd")]
        eps = "eps" if "eps" in self.p.positional() else "1e-5"
        return (
            f"left_kernel[({of}.numel() // {of}.shape[-1],)]({of}, {', '.join(told)}, {of}.shape[-1], {eps}, "
            f"MEAN={'mean' in self.tensors}, KEEP_MEAN={'mean' in left}, KEEP_RSTD={'rstd' in left}, BLOCK=1024)"
        )

    def _value(self, number: int, q: Parameter) -> str:
        if "stride" in q.name.lower() and not q.pointer:
            return self._stride(q.name)
        return self.argument(number, q)

    def _stride(self, name: str) -> str:
        """`x_row_stride`, `stride_x`, `input_feat_stride`: of the tensor that it names, or of the first."""
        words = [w for w in re.split(r"_+", name.lower()) if w and w not in ("stride", "ptr", "pointer")]
        inner = bool(words) and words[-1] in INNER
        said = "_".join(w for w in words if w not in INNER + OUTER)
        found = (t for p, t in self.matched.items() if said in (plain_name(p), p.lower(), t.lower()))
        tensor = next(found, None)
        if tensor is None:
            self.lines.append(
                f"{name} = {self.main()}.stride({-1 if inner else -2})  # {DECIDE}: of which tensor and axis"
            )
            return name
        # what has one row only has one axis, and of numbers one a row a row is an element
        shape = self.tensors[tensor].shape.split()
        axis = -1 if inner or len(shape) == 1 or shape[-1] != self.columns() else -2
        return f"{tensor}.stride({axis})"

    def _constant_value(self, name: str) -> str:
        """A size, a stride or a number of the contract's, where it is one, or a tile."""
        if name in KNOWN:
            return "4"
        tiles = [n for n in self.constants if re.fullmatch("B[A-Z]", n)]  # BT, BK, BS: of them BS is no batch
        if name.upper().startswith(tuple(GUESSES)) or (name in tiles and len(tiles) > 1):
            return self._tile(name)
        if "stride" in name.lower():
            return self._stride(name)
        return self.scalar(name) or self._tile(name)

    def _tile(self, name: str) -> str:
        sized = any(plain_name(q.name) in ALL for q in self.signature.parameters
                    if self.scalar(q.name) != self.columns())  # fmt: skip
        rows = not self.loop and len(self.tensors[self.main()].shape.split()) > 1
        if name.upper().startswith("BLOCK") and rows and not sized:
            guess = f"triton.next_power_of_2({self.columns()})"
        else:
            guess = next((value for start, value in GUESSES.items() if name.upper().startswith(start)), "1")
        self.lines.append(f"{name} = {guess}  # {DECIDE}: {TILE}")
        return name

    def columns(self) -> str:
        return f"{self.loop}[i].numel()" if self.loop else self.tensors[self.main()].shape.split()[-1]


def _identifiers(node: ast.AST) -> set[str]:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return names | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def _reached(function: ast.FunctionDef, calls: Sequence[str]) -> set[str]:
    """The names that loads, or stores, go by: their first argument, and what that is a sum of."""
    found: set[str] = set()
    sums: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and node.args and re.match(rf"tl\.({'|'.join(calls)})$", ast.unparse(node.func)):
            found |= _summed(node.args[0])
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AugAssign):
                sums.setdefault(target.id, set()).update(_summed(node.value))
    while more := {n for name in found for n in sums.get(name, ())} - found:
        found |= more
    numbers = {n for n in found if re.search(r"stride|offset|^n_|^num_|_idx$|_id$", n.lower())}
    return found - numbers


def _counted(function: ast.FunctionDef) -> set[str]:
    """Names that something is compared with, divided by or counted to."""
    nodes: list[ast.AST] = []
    for n in ast.walk(function):
        if isinstance(n, ast.Compare) and not any(isinstance(o, ast.Is | ast.IsNot) for o in n.ops):
            nodes += [n.left, *n.comparators]
        elif isinstance(n, ast.BinOp) and isinstance(n.op, ast.FloorDiv | ast.Mod | ast.Mult):
            nodes += [n.left, n.right]
        elif isinstance(n, ast.Call) and re.search(r"\b(range|cdiv)$", ast.unparse(n.func)):
            nodes += n.args
    return {n.id for n in nodes if isinstance(n, ast.Name)}


def _summed(node: ast.expr) -> set[str]:
    """The names that a sum is of, factors left out: `x` and `i` of `x + row * stride + i`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        return _summed(node.left) | _summed(node.right)
    return {node.id} if isinstance(node, ast.Name) else set()


def _is_pointer(name: str, tensors: Sequence[str]) -> bool:
    if re.search(r"ptr|pointer", name.lower()):
        return True
    if re.search(r"stride|^n_|^num_|eps|scale", name.lower()):
        return False
    return plain_name(name) in {t.lower() for t in tensors} or (
        name[:1].isupper() and any(plain_name(name) in others(t) for t in tensors) and len(name) <= 4
    )
