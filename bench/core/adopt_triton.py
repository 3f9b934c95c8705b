"""The variant of a Triton kernel that exists: its functions copied, its parameters matched to a layer's contract.

Launchers of Triton kernels are any Python, so that grid and tile sizes are guesses by the names, each marked.
"""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from bench.cli import USAGE, CannotGoOn
from bench.core.adopt_cuda import ALL, DECIDE, Adopted, Writer, others, plain_name
from kernels.cuda.cplusplus import Unit
from kernels.cuda.signature import Parameter, Signature
from reference import contract

TUNED = ("autotune", "heuristics")
KNOWN = {"num_warps", "num_stages"}
INNER, OUTER = ("feat", "col", "cols", "n"), ("row", "rows", "batch", "m")  # axes, in the names of strides
GUESSES = {"BLOCK": "1024", "GROUP": "8", "NUM": "4"}


def adopted_triton(source: Path, layer: str, kernel: str | None) -> Adopted:
    """The variant's text. CannotGoOn where there is no such kernel, or several and none is named."""
    try:
        tree = _decorated(ast.parse(source.read_text()))
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
    choices = [_TritonWriter(source, jitted[entry], p, contract.pass_of(module, p)) for p in contract.phases_of(module)]
    writer = min(choices, key=lambda w: w.lacking)
    return writer.text(_needed(tree, jitted, entry))


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
    return any(re.search(r"\bjit\b", ast.unparse(d)) for d in node.decorator_list)


def _needed(tree: ast.Module, jitted: dict[str, ast.FunctionDef], entry: str) -> list[ast.stmt]:
    """The statements that the kernel needs, in order: imports of Triton's, constants, functions; tuning left out."""
    wanted, waiting = set[str](), [entry]
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        wanted.add(name)
        for node in tree.body:
            if _binds(node) == name and (name in jitted or not isinstance(node, ast.FunctionDef)):
                waiting += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and "triton" in ast.unparse(node):
            kept.append(node)
        elif _binds(node) in wanted:
            if isinstance(node, ast.FunctionDef):
                if node.name not in jitted:
                    continue
                node.decorator_list = [d for d in node.decorator_list if not any(t in ast.unparse(d) for t in TUNED)]
            kept.append(node)
    return kept


def _binds(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else ""


class _TritonWriter(Writer):
    def __init__(self, source: Path, function: ast.FunctionDef, phase: str, p: contract.Pass):
        self.function = function
        arguments = [*function.args.args, *function.args.kwonlyargs]
        self.constants = [a.arg for a in arguments if a.annotation and "constexpr" in ast.unparse(a.annotation)]
        self.every = [a.arg for a in arguments]
        names = [name for name in self.every if name not in self.constants]
        tensors, reached = [t.name for t in (*p.inputs, *p.outputs)], _reached(function)
        parameters = [Parameter(name, "", pointer=name in reached or _is_pointer(name, tensors)) for name in names]
        signature = Signature((), tuple(parameters), name=function.name)
        super().__init__(source, Unit(), signature, phase, p, None, function.name, function.name)
        if not any(q.pointer for q in parameters):
            self.lacking += 10

    def text(self, kept: Sequence[ast.stmt]) -> Adopted:
        told = {q.name: self._value(number, q) for number, q in enumerate(self.signature.parameters)}
        told |= {name: self._constant_value(name) for name in self.constants}
        first = min((self.every.index(name) for name in self.constants), default=len(self.every))
        values = [told[n] if i < first else f"{n}={told[n]}" for i, n in enumerate(self.every)]
        rows = any("BLOCK" not in line and DECIDE not in line for line in self.lines)
        block = next((name for name in self.constants if name.upper().startswith("BLOCK")), "")
        main = self.tensors[self.main()]
        flat = len(main.shape.split()) == 1 or any(plain_name(q.name) in ALL for q in self.signature.parameters)
        if flat and block and not rows:
            grid = f"(triton.cdiv({main.name}.numel(), {block}),)"
        else:
            grid = f"({main.name}.numel() // {main.name}.shape[-1],)"
        self.lines.append(f"grid = {grid}  # {DECIDE}: how many programs")
        launch = f"{self.function.name}[grid]({', '.join(values)})"
        refusals, sizes = list(self.refusals()), list(self.sizes(launch))
        body = [f"    {line}" for line in (*refusals, *sizes, *self.lines, launch)]
        names = f"{', '.join(self.p.positional())}, *, {', '.join(self.p.keyword())}"
        parts = [ast.unparse(node) for node in kept]
        refuses = any("Unavailable" in line for line in body)
        text = [
            f'"""{self.function.name} of {self.source.name}; launched by guesses."""',
            "",
            *(part for part in parts if part.startswith(("import", "from"))),
            *(["", "from kernels import Unavailable"] if refuses else []),
            *(f"\n{part}" if part[0] != "@" else f"\n\n{part}" for part in parts
              if not part.startswith(("import", "from"))),
            "",
            "",
            f"def {self.phase}({names}):",
            *body,
            "",
        ]  # fmt: skip
        if not any(re.match(r"import triton$|import triton\b(?!\.)", part) for part in parts):
            text.insert(2, "import triton")
        whole = "\n".join(text)
        return Adopted(whole, {}, [line.strip() for line in whole.splitlines() if DECIDE in line])

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
        if name.upper().startswith(tuple(GUESSES)):
            return self._tile(name)
        if "stride" in name.lower():
            return self._stride(name)
        return self.scalar(name) or self._tile(name)

    def _tile(self, name: str) -> str:
        if name.upper().startswith("BLOCK") and len(self.tensors[self.main()].shape.split()) > 1 and not any(
            plain_name(q.name) in ALL for q in self.signature.parameters if self.scalar(q.name) != self.columns()
        ):  # fmt: skip
            guess = f"triton.next_power_of_2({self.columns()})"
        else:
            guess = next((value for start, value in GUESSES.items() if name.upper().startswith(start)), "1")
        self.lines.append(f"{name} = {guess}  # {DECIDE}: a tile's size")
        return name

    def columns(self) -> str:
        return self.tensors[self.main()].shape.split()[-1]


def _reached(function: ast.FunctionDef) -> set[str]:
    """The names that loads, stores and atomics go by: their first argument, and what that is a sum of."""
    found: set[str] = set()
    sums: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Call)
            and node.args
            and re.match(r"tl\.(load|store|atomic_\w+|make_block_ptr)$", ast.unparse(node.func))
        ):
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
