"""What a Python function works out before it launches a Triton kernel, said again of a contract's tensors.

The statements that grid, tiles, strides and sizes come from are kept as they are; the launcher's own tensors become the
contract's, in the shape that it sees them in; what it allocates is what it is given. What it raises for is a refusal.
What cannot be said of the contract's tensors alone (a device's properties, a context object) is left to be decided.
"""

import ast
import builtins
import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from reference.contract import Tensor

OPTIONS = ("num_warps", "num_stages")
VIEWS = {"view", "reshape", "flatten", "contiguous", "squeeze", "unsqueeze", "detach"}
OF_A_TENSOR = VIEWS | {
    "shape",
    "stride",
    "size",
    "numel",
    "nelement",
    "dtype",
    "element_size",
    "dim",
    "ndim",
    "itemsize",
}
PLAIN = {"min", "max", "int", "float", "bool", "len", "abs", "sum", "tuple", "list", "range", "dict", "round", "divmod",
         "isinstance", "str", "multiprocessors", "True", "False", "None"}  # fmt: skip
MODULES = {"triton", "math", "tl"}
DTYPES = {"float32", "float16", "bfloat16", "int8", "int32", "int64", "float64", "half", "float", "dtype"}
MAKES = {
    "empty",
    "zeros",
    "empty_like",
    "zeros_like",
    "new_empty",
    "new_zeros",
    "ones",
    "ones_like",
    "empty_strided",
    "full",
}
COUNTED = {"multi_processor_count", "multiprocessor_count", "num_sms", "NUM_SM", "num_sm"}
COUNT = "_counted_multiprocessors"
HEADS = {"h", "nh", "head", "heads", "n_head", "n_heads", "num_heads", "nheads", "num_q_heads", "q_heads"}


@dataclass
class Launch:
    """A launch in a Python function: what it is given by parameter of the kernel, and the statements on the way."""

    function: ast.FunctionDef
    grid: ast.expr
    given: dict[str, ast.expr]
    before: list[ast.stmt]


def launch_of(tree: ast.Module, kernel: str, parameters: Sequence[str]) -> Launch | None:
    """The first launch of a kernel in a function that is no test; None where there is none, or it is in a loop."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    for function in sorted(functions, key=lambda f: f.name.startswith(("test", "bench"))):
        for call in ast.walk(function):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Subscript)):
                continue
            launched = call.func.value  # by way of torch's wrap_triton, too
            launched = launched.args[0] if isinstance(launched, ast.Call) and len(launched.args) == 1 else launched
            if not isinstance(launched, ast.Name):
                continue
            known = _stands_for(function, launched.id, kernel)
            if not known and launched.id not in _defaults(function):
                continue
            before = _way(function.body, call)
            given = _positional(call, parameters)
            if before is None or given is None:
                continue
            given |= {k.arg: k.value for k in call.keywords if k.arg}
            if not known and not set(parameters) <= given.keys() <= {*parameters, *OPTIONS}:
                continue  # a kernel that it is given, and another one
            return Launch(function, call.func.slice, {**_warmed_up(function, kernel, parameters), **given}, before)
    return None


def _warmed_up(function: ast.FunctionDef, kernel: str, parameters: Sequence[str]) -> dict[str, ast.expr]:
    """What `kernel.warmup(…)` is given, which compiles it for its launch."""
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{kernel}.warmup":
            told = {k.arg: k.value for k in call.keywords if k.arg in (*parameters, *OPTIONS)}
            return {**(_positional(call, parameters) or {}), **told}
    return {}


def _stands_for(function: ast.FunctionDef, name: str, kernel: str) -> bool:
    """Whether a name is the kernel, or one that is given it: `run = one if … else other`, or a parameter's default."""
    if name == kernel:
        return True
    values = [n.value for n in ast.walk(function) if isinstance(n, ast.Assign) and _name_of(n) == name]
    values += [v for n, v in _defaults(function).items() if n == name and v is not None]
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, ast.Name) and value.id == kernel:
            return True
        waiting += [value.body, value.orelse] if isinstance(value, ast.IfExp) else []
        compiled = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "warmup"
        waiting += [value.func.value] if compiled else []  # type: ignore[attr-defined]
    return False


def _strides_of(said: str, names: Sequence[str]) -> int:
    """How many of these parameters, from the first on, have the tensor's name in theirs: of `rms_w.stride()`
    stride_rms_w, of `q.stride()` stride_qz."""
    words = said.removesuffix(".stride()").lower().split("_")

    def of_it(name: str) -> bool:
        parts = name.lower().split("_")
        return any(p.startswith(w) and len(p) <= len(w) + 1 for p in parts for w in words)

    return sum(1 for _ in itertools.takewhile(of_it, names))


def _positional(call: ast.Call, parameters: Sequence[str]) -> dict[str, ast.expr] | None:
    """Arguments by parameter; `*x.stride()` is as many as there are strides in a row, shared among such."""
    given: dict[str, ast.expr] = {}
    left, waiting = list(parameters), list(call.args)
    while waiting:
        node = waiting.pop(0)
        if not isinstance(node, ast.Starred):
            given |= {left.pop(0): node} if left else {}
            continue
        several = 1 + next((i for i, n in enumerate(waiting) if not isinstance(n, ast.Starred)), len(waiting))
        strides = next((i for i, n in enumerate(left) if "stride" not in n.lower()), len(left))
        if not re.search(r"\.stride\(\)$", ast.unparse(node.value)):
            return None
        share = _strides_of(ast.unparse(node.value), left[:strides])
        if not share and strides % several:
            return None
        share = share or strides // several
        for axis in range(share):
            given[left.pop(0)] = ast.Subscript(node.value, ast.Constant(axis), ast.Load())
    return given


def _has(node: ast.AST, wanted: ast.AST) -> bool:
    return any(n is wanted for n in ast.walk(node))


def _way(body: Sequence[ast.stmt], call: ast.Call) -> list[ast.stmt] | None:
    """The statements that come before a call; a branch that it stands in as the assertion of its condition."""
    way: list[ast.stmt] = []
    for node in body:
        if not _has(node, call):
            way.append(node)
            continue
        inner: Sequence[ast.stmt] = []
        if isinstance(node, ast.If):
            chosen = any(_has(n, call) for n in node.body)
            test = node.test if chosen else ast.UnaryOp(ast.Not(), node.test)
            way.append(ast.Assert(test, None))
            inner = node.body if chosen else node.orelse
        elif isinstance(node, ast.With | ast.Try):
            inner = node.body
        elif isinstance(node, ast.For | ast.While | ast.FunctionDef | ast.ClassDef):
            return None
        further = _way(inner, call) if inner else []
        return None if further is None else way + further
    return None


@dataclass
class Said:
    """What is said of a launch: lines before it, the grid, and the value of each parameter; None: not known."""

    lines: list[str] = field(default_factory=list)
    grid: str | None = None
    values: dict[str, str | None] = field(default_factory=dict)
    helpers: set[str] = field(default_factory=set)  # of the module, which the lines call
    decide: list[str] = field(default_factory=list)


class Teller:
    """Says of a launch what can be said.

    matched: tensors by the kernel's parameters; pointers: all that are some tensor. scalar: Python of a size or number
    by its name, or None. names: those that a launcher's own must not take. counted: Python of the number of
    multiprocessors. heads: the second of four axes is heads where nothing says.
    """

    def __init__(
        self,
        launch: Launch,
        tree: ast.Module,
        matched: Mapping[str, str],
        tensors: Mapping[str, Tensor],
        pointers: Sequence[str],
        scalar: Callable[[str], str | None],
        names: set[str],
        counted: str,
        heads: bool = True,
    ):
        self.imported = {
            a.asname or a.name
            for n in tree.body
            if isinstance(n, ast.ImportFrom) and (n.module or "").split(".")[0] in ("triton", "math")
            for a in n.names
        }
        self.launch, self.tensors, self.scalar, self.counted = launch, tensors, scalar, counted
        self.module = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        constants = {_name_of(n): ast.unparse(n) for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign)}
        # Of this machine's device, or on it: a script's own tensors.
        made = r"torch\.(?:randn?|randint|empty|zeros|ones|arange|tensor|full)\b"
        asked = re.compile(rf"torch\.cuda|torch\.device|driver|environ|accelerator|{made}")
        of_device = {n for n, text in constants.items() if asked.search(text)}
        while more := {n for n, text in constants.items() if of_device & _words(text)} - of_device:
            of_device |= more  # and what is made of that
        self.constants = {n for n in constants if n} - of_device
        self.parameters = _with_callers_defaults(tree, launch.function)
        self.said = Said()
        self.heads = heads
        self.unsure: set[str] = set()  # tensors whose second axis nobody tells
        self.names: dict[str, str] = {}  # of the launcher's, where they are known: what they are called here
        self.taken = names
        self.leaves = self._leaves(matched)
        self.kernel_pointers = frozenset(pointers)
        self.pointed = {self.leaf(name) for name in pointers}  # tensors of the launcher's, the contract's or not
        self.lambdas: dict[str, ast.expr] = {}
        self.bound: dict[str, str] = {}  # the launcher's tensors that it does not allocate, as it sees them

    # --- tensors ---

    def leaf(self, parameter: str) -> str | None:
        """The launcher's name of a tensor, without the views it makes of it."""
        name = _viewed(self.launch.given.get(parameter))
        for node in reversed(self.launch.before):
            if name and isinstance(node, ast.Assign) and _name_of(node) == name and _viewed(node.value):
                name = _viewed(node.value)
        return name

    def _leaves(self, matched: Mapping[str, str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for parameter, tensor in matched.items():
            name = self.leaf(parameter)
            if name and found.setdefault(name, tensor) != tensor:
                found[name] = ""  # what is read and written is one here, and two in the contract
        return {name: tensor for name, tensor in found.items() if tensor}

    def _axes(self, name: str) -> tuple[int, bool, list[str]]:
        """How many axes the launcher sees in a tensor before it makes a view, at least; if exactly; their names."""
        least = 0
        for node in [*self.launch.before, *(ast.Expr(v) for v in (self.launch.grid, *self.launch.given.values()))]:
            for n in ast.walk(node):
                if isinstance(n, ast.Attribute) and n.attr in VIEWS - {"contiguous", "detach"} and _is(n.value, name):
                    return least, False, []
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and _is(n.func.value, name):
                    least = max(least, _axis(n.args[0]) if n.func.attr in ("stride", "size") and n.args else 0)
                told = n.comparators[0] if isinstance(n, ast.Compare) else None
                if (
                    isinstance(n, ast.Compare)
                    and isinstance(told, ast.Tuple)
                    and ast.unparse(n.left) == f"{name}.shape"
                ):
                    return len(told.elts), True, []
                if isinstance(n, ast.Subscript) and isinstance(n.value, ast.Attribute) and _is(n.value.value, name):
                    least = max(least, _axis(n.slice) if n.value.attr == "shape" else 0)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                value, into = _unpacked(node.value, node.targets[0].elts)
                whole = isinstance(value, ast.Attribute) and value.attr in ("shape", "size") and _is(value.value, name)
                if whole and not any(isinstance(e, ast.Starred) for e in into):
                    return len(into), True, [e.id if isinstance(e, ast.Name) else "" for e in into]
        return least, False, []

    def _seen(self, name: str, tensor: str) -> str:
        """The contract's tensor with as many axes as the launcher sees in it."""
        shape = self.tensors[tensor].shape.split()
        axes, exact, called = self._axes(name)
        if shape == ["N", "K"] and self._across(name):
            return f"{tensor}.t()"
        beside = [
            self._axes(n) for n, t in self.leaves.items() if n != name and len(self.tensors[t].shape.split()) == 4
        ]
        several = axes > 2 or any(others == 4 for others, _, _ in beside)  # one more than it asks for, or as the others
        if len(shape) == 4 and (axes == 4 or (several and not exact)):
            named = (called, *(names for _, _, names in beside))  # its own, or those of another
            second = next((heads for names in named if (heads := _second_is_heads(names)) is not None), None)
            if second is None:
                self.unsure.add(tensor)
            return f"{tensor}.transpose(1, 2)" if (self.heads if second is None else second) else tensor
        if shape[-1] == "VP" and self._tells_stride(name):
            self.scalar("V")
            return f"{tensor}.view(-1, {tensor}.shape[-1])[:, :V]"  # padding lies behind a row
        if axes > len(shape):
            return f"{tensor}[{', '.join(['None'] * (axes - len(shape)))}]"
        if axes and len(shape) > max(axes, 2) and (axes == 2 or not exact):
            return f"{tensor}.view(-1, {tensor}.shape[-1])"
        return f"{tensor}.view(-1)" if exact and axes == 1 and len(shape) > 1 else tensor

    def _tells_stride(self, name: str) -> bool:
        """Whether the kernel is told how far apart a tensor's rows are."""
        given = [ast.unparse(v) for v in self.launch.given.values()]
        return any(re.match(rf"{re.escape(name)}\.stride\((0|-2)\)", text) for text in given)

    def _across(self, name: str) -> bool:
        """Whether a matrix's first axis is what a row of the other's has: their sizes are compared, or called alike."""
        others = [n for n, t in self.leaves.items() if self.tensors[t].shape.split() == ["M", "K"]]
        told = " ".join(ast.unparse(n) for n in self.launch.before)
        for other in others:
            axes = rf"{re.escape(other)}\.(?:shape\[(?:1|-1)\]|size\((?:1|-1)\))"
            first = rf"{re.escape(name)}\.(?:shape\[0\]|size\(0\))"
            if re.search(rf"{axes}\s*[!=]=\s*{first}|{first}\s*[!=]=\s*{axes}", told):
                return True
            mine, theirs = self._axes(name)[2], self._axes(other)[2]
            if mine and theirs and mine[0] == theirs[-1] != "_":
                return True
        return False

    # --- names and expressions ---

    def _local(self, name: str) -> str:
        self.names[name] = name if name not in self.taken else f"{name}_"
        return self.names[name]

    def told(self, node: ast.expr | None) -> str | None:
        """An expression as Python here; None where something in it is not known."""
        if node is None:
            return None
        node = self._plain(copy.deepcopy(node))
        if not self._known(node, set()):
            return None
        text = ast.unparse(ast.fix_missing_locations(_Renamed(self.names).visit(node)))
        return text.replace(COUNT, self.counted)

    def _plain(self, node: ast.expr) -> ast.expr:
        """With the number of multiprocessors where a device is asked for it, and without contiguous()."""
        node = _Counted(self.module).visit(node)
        return _Folded(self._truth).visit(node)

    def _truth(self, test: ast.expr) -> bool | None:
        """Whether `x is None` holds of a tensor of the launcher's, where that is the same in every call."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self._truth(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.Name) and test.id in self.parameters and test.id not in self.leaves:
            value = self.parameters[test.id]
            flag = isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, bool))
            told = self.scalar(test.id) is not None and test.id not in self.pointed
            return bool(value.value) if flag and not told else None  # type: ignore[union-attr]
        if not (isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and len(test.ops) == 1):
            return None
        if not (isinstance(test.comparators[0], ast.Constant) and test.comparators[0].value is None):
            return None
        yes = isinstance(test.ops[0], ast.Is | ast.Eq)
        tensor = self.leaves.get(test.left.id)
        if tensor and self.tensors[tensor].when.__name__ == "always":
            return not yes
        if test.left.id in self.absent():
            return yes
        return None

    def absent(self) -> set[str]:
        """The launcher's parameters that are None: nothing of the contract's is meant by them."""
        none = {n for n, v in self.parameters.items() if isinstance(v, ast.Constant) and v.value is None}
        return {n for n in none if n not in self.leaves and (n in self.pointed or self.scalar(n) is None)}

    def _known(self, node: ast.AST, local: set[str]) -> bool:
        if isinstance(node, ast.Lambda):
            return self._known(node.body, local | {a.arg for a in node.args.args})
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            for g in node.generators:
                if not self._known(g.iter, local):
                    return False
                local = local | {n.id for n in ast.walk(g.target) if isinstance(n, ast.Name)}
            return self._known(node.elt, local) and all(self._known(c, local) for g in node.generators for c in g.ifs)
        if isinstance(node, ast.Name):
            if node.id in self.names or node.id in local or node.id in MODULES | PLAIN | self.imported | {COUNT}:
                return True
            if node.id in self.constants or (node.id in self.module and self._copied(node.id)):
                self.said.helpers.add(node.id)
                return True
            return False
        if isinstance(node, ast.Attribute):
            if _root(node) == "torch":
                return ast.unparse(node).removeprefix("torch.") in DTYPES
            of_module = _root(node) in MODULES
            return (of_module or node.attr in OF_A_TENSOR or node.attr == "value") and self._known(node.value, local)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            return False
        signs = ast.expr_context | ast.operator | ast.cmpop | ast.boolop | ast.unaryop
        return all(self._known(child, local) for child in ast.iter_child_nodes(node) if not isinstance(child, signs))

    def _copied(self, name: str) -> bool:
        """Whether a function of the module says what it says by its arguments alone."""
        function = self.module[name]
        if any("jit" in ast.unparse(d) for d in function.decorator_list):
            return False
        own = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}
        own |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in (n for part in function.body for n in ast.walk(part)):
            if isinstance(node, ast.Attribute) and _root(node) in ("torch", "triton"):
                said = ast.unparse(node)
                if said.startswith("triton.runtime") or not re.match(
                    rf"triton\.|torch\.version|torch\.({'|'.join(DTYPES)})$", said
                ):
                    return False
            if not isinstance(node, ast.Name) or node.id in own or hasattr(builtins, node.id):
                continue
            if node.id in MODULES | {"torch"} or node.id in self.constants or node.id == name:
                continue
            if node.id not in self.module or not self._copied(node.id):
                return False
        return True

    # --- statements ---

    def tell(self, further: Callable[[Mapping[str, str | None]], dict[str, str]]) -> Said:
        """Everything that can be said of the launch. further: what a tuner or heuristics add to its values."""
        self.bound = {n: self._seen(n, t) for n, t in self.leaves.items() if not self._makes(n)}
        for name in self.bound:
            self._local(name)
        pairs = [(self.names[n], v) for n, v in self.bound.items() if self.names[n] != v]
        lines: list[tuple[str, set[str], set[str]]] = []  # text, what it makes, what it needs
        for local, seen in pairs:
            lines.append((f"{local} = {seen}", {local}, set()))
        for name, value in self.parameters.items():
            if name in self.leaves or name in ("self", "ctx"):
                continue
            known = None if name in self.pointed else self.scalar(name)
            if known is None and isinstance(value, ast.Constant):
                known = repr(value.value)
            if known is not None:
                here = self._local(name) if known != name else self.names.setdefault(name, name)
                lines += [(f"{here} = {known}", {here}, set())] if known != here else []
        for node in self.launch.before:
            lines += self._statement(node, "")
        values = {name: self.told(v) for name, v in self.launch.given.items() if not self._left_open(name, v)}
        values |= {name: value for name, value in further(values).items() if not values.get(name)}
        grid = self._grid(self.launch.grid, values)
        self.said.values, self.said.grid = values, grid
        text = " ".join(v for v in (grid, *values.values()) if v)
        needed = _words(text)
        kept: list[str] = []
        for line, makes, _ in reversed(lines):
            if makes and not makes & needed:
                continue
            needed |= _words(line)
            kept.append(line)
        self.said.lines += reversed(kept)
        self.said.helpers = {n for n in self.said.helpers if n in needed}
        return self.said

    def _left_open(self, name: str, value: ast.expr) -> bool:
        """Whether a number is None unless a caller gives one."""
        default = self.parameters.get(value.id) if isinstance(value, ast.Name) else None
        return isinstance(default, ast.Constant) and default.value is None and name not in self.kernel_pointers

    def _makes(self, name: str) -> bool:
        """Whether the launcher allocates it."""
        return any(_name_of(n) == name and _allocates(n.value) for n in self._assignments())

    def _assignments(self) -> Iterator[ast.Assign]:
        for node in self.launch.before:
            for n in ast.walk(node):
                if isinstance(n, ast.Assign):
                    yield n

    def _statement(self, node: ast.stmt, indent: str) -> list[tuple[str, set[str], set[str]]]:
        """A statement's lines, as (text, names that it makes, …); [] of what says nothing here."""
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            node = ast.Assign([node.target], node.value)
        if isinstance(node, ast.FunctionDef):  # def grid(meta): return …
            if len(node.body) == 1 and isinstance(node.body[0], ast.Return) and node.body[0].value:
                self.lambdas[node.name] = ast.Lambda(node.args, node.body[0].value)
            return []
        if isinstance(node, ast.With):
            return [line for n in node.body for line in self._statement(n, indent)]
        if isinstance(node, ast.Assert):
            every = isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.And)
            parts = node.test.values if every else [node.test]  # type: ignore[attr-defined]
            return [line for p in parts if self._of_sizes(p) for line in self._refusal(p, indent, False)]
        if isinstance(node, ast.If):
            return self._branches(node, indent)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            value = self.told(node.value)
            if value is None or node.target.id not in self.names:
                self.names.pop(node.target.id, None)
                return []
            name = self.names[node.target.id]
            sign = ast.unparse(ast.AugAssign(ast.Name("a"), node.op, ast.Name("b")))[1:-1].strip()
            return [(f"{indent}{name} {sign} {value}", {name}, set())]
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            return []
        return self._assigned(node, indent)

    def _assigned(self, node: ast.Assign, indent: str) -> list[tuple[str, set[str], set[str]]]:
        target, name = node.targets[0], _name_of(node)
        if isinstance(node.value, ast.Lambda):
            self.lambdas[name] = node.value
            return []
        if name in self.leaves and (shape := _allocates(node.value)):
            tensor = self.leaves[name]
            seen = self._shaped(tensor, shape)
            if any("zeros" in ast.unparse(c.func) for c in ast.walk(node.value) if isinstance(c, ast.Call)):
                self.said.decide.append(f"# DECIDE: the launcher's {name} has zeros in it, which the kernel may add to")
            here = self._local(name)
            return [(f"{indent}{here} = {seen}", {here}, set())] if here != seen else []
        into = [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
        if set(into) & self.leaves.keys() and (isinstance(target, ast.Tuple) or not _viewed(node.value)):
            return []  # a tensor of the contract's, wherever it comes from
        value = self.told(node.value)
        if value is None or not isinstance(target, ast.Name | ast.Tuple):
            for n in into:
                self.names.pop(n, None)
            return []
        called = {self._local(n) for n in into}
        text = ast.unparse(_Renamed(self.names).visit(copy.deepcopy(target)))
        text = text[1:-1] if isinstance(target, ast.Tuple) and text.startswith("(") else text
        return [(f"{indent}{text} = {value}", called, set())] if text != value else []

    def _shaped(self, tensor: str, shape: ast.expr) -> str:
        """A tensor in the shape that the launcher allocates it with, where that is known."""
        if len(self.tensors[tensor].shape.split()) == 4:  # as the others of four axes
            turned = any(seen.endswith(".transpose(1, 2)") for seen in self.bound.values())
            return f"{tensor}.transpose(1, 2)" if turned else tensor
        text = self.told(shape)
        if text is None:
            return tensor
        return f"{tensor}.view({text.strip('()') if isinstance(shape, ast.Tuple) else text})"

    def _of_sizes(self, test: ast.expr) -> bool:
        """Whether a condition is one of sizes, rather than of devices, dtypes or how memory lies."""
        said = {n.attr for n in ast.walk(test) if isinstance(n, ast.Attribute)}
        return not said & {"dtype", "device", "is_contiguous", "is_cuda", "dim", "ndim", "data_ptr", "stride"}

    def _refusal(self, test: ast.expr, indent: str, when: bool) -> list[tuple[str, set[str], set[str]]]:
        """A refusal of what does not fulfil a condition, or (`when`) of what does."""
        if self._truth(test) is not None or (text := self.told(test)) is None:
            return []
        compares = any(isinstance(n, ast.Compare) for n in ast.walk(test))
        if not compares or text in ("True", "False"):
            return []
        said = ast.unparse(test).replace('"', "'").replace("\\", "")[:80]
        line = f"{indent}if {text if when else f'not ({text})'}:"
        said = said if when else f"not {said}"
        return [(line + f'\n{indent}    raise Unavailable("{said}")', set(), set())]

    def _branches(self, node: ast.If, indent: str) -> list[tuple[str, set[str], set[str]]]:
        truth = self._truth(node.test)
        if truth is not None:
            return [line for n in (node.body if truth else node.orelse) for line in self._statement(n, indent)]
        if any(isinstance(n, ast.Raise) for n in node.body):
            return self._refusal(node.test, indent, True) if self._of_sizes(node.test) else []
        test = self.told(node.test)
        inner = {n.id for part in (*node.body, *node.orelse) for n in ast.walk(part)
                 if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}  # fmt: skip
        if test is None:
            for n in inner - self.leaves.keys():
                self.names.pop(n, None)
            return []
        before = dict(self.names)
        one = [line for n in node.body for line in self._statement(n, indent + "    ")]
        after_one, self.names = self.names, {**before}
        other = [line for n in node.orelse for line in self._statement(n, indent + "    ")]
        # known afterwards: what is known on both ways
        self.names = {n: v for n, v in self.names.items() if n in after_one}
        makes = {n for _, m, _ in (*one, *other) for n in m}
        if not one and not other:
            return []
        text = "\n".join([f"{indent}if {test}:", *([t for t, _, _ in one] or [f"{indent}    pass"]),
                          *([f"{indent}else:", *(t for t, _, _ in other)] if other else [])])  # fmt: skip
        return [(text, makes, set())]

    # --- the grid ---

    def _grid(self, node: ast.expr, values: Mapping[str, str | None]) -> str | None:
        if isinstance(node, ast.Name) and node.id in self.lambdas:
            node = self.lambdas[node.id]
        if not isinstance(node, ast.Lambda):
            return self.told(node)
        told = _Meta(node.args.args[0].arg if node.args.args else "", values).visit(copy.deepcopy(node.body))
        kept, self.names = self.names, {**self.names, **{v: v for v in _words(" ".join(filter(None, values.values())))}}
        try:
            return self.told(told)
        finally:
            self.names = kept


class _Meta(ast.NodeTransformer):
    """`meta["BLOCK"]` of a grid or a heuristic as the launch's own value."""

    def __init__(self, meta: str, values: Mapping[str, str | None]):
        self.meta, self.values = meta, values

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if isinstance(node.value, ast.Name) and node.value.id == self.meta and isinstance(node.slice, ast.Constant):
            value = self.values.get(str(node.slice.value))
            return ast.parse(value, mode="eval").body if value else ast.Name("_unknown")
        self.generic_visit(node)
        return node


def of_meta(function: ast.Lambda | ast.FunctionDef, values: Mapping[str, str | None]) -> str | None:
    """What a heuristic says of a launch with such values; None where it asks for others."""
    if isinstance(function, ast.FunctionDef):
        asked = [n.slice.value for n in ast.walk(function) if isinstance(n, ast.Subscript)
                 and isinstance(n.slice, ast.Constant) and isinstance(n.slice.value, str)]  # fmt: skip
        if not all(values.get(name) for name in asked):
            return None
        return f"{function.name}({{{', '.join(f'{name!r}: {values[name]}' for name in dict.fromkeys(asked))}}})"
    meta = function.args.args[0].arg if function.args.args else ""
    text = ast.unparse(ast.fix_missing_locations(_Meta(meta, values).visit(copy.deepcopy(function.body))))
    return None if {"_unknown", meta} & _words(text) else text


class _Renamed(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]):
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.names.get(node.id, node.id), node.ctx)


class _Counted(ast.NodeTransformer):
    """The number of multiprocessors, however it is asked for; what contiguous() is of."""

    def __init__(self, module: Mapping[str, ast.FunctionDef]):
        self.module = module

    def _it(self) -> ast.expr:
        return ast.Name(COUNT, ast.Load())

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if node.attr in COUNTED:
            return self._it()
        self.generic_visit(node)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if isinstance(node.slice, ast.Constant) and node.slice.value in COUNTED:
            return self._it()
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in self.module and any(word in ast.unparse(self.module[name]) for word in COUNTED):
            returns = [n for n in ast.walk(self.module[name]) if isinstance(n, ast.Return)]
            if len(returns) == 1:
                return self._it()
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("contiguous", "detach") and not node.args:
            return node.func.value
        return node


class _Folded(ast.NodeTransformer):
    """`a if x is not None else b` as the one that it is."""

    def __init__(self, truth: Callable[[ast.expr], bool | None]):
        self.truth = truth

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        truth = self.truth(node.test)
        if truth is not None:
            return self.visit(node.body if truth else node.orelse)
        self.generic_visit(node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        truth = self.truth(node)
        return node if truth is None else ast.Constant(truth)


def first_configuration(function: ast.FunctionDef, tree: ast.Module) -> dict[str, str]:
    """Tiles and options of the first configuration that a kernel is tuned over, where they are numbers."""
    module = {_name_of(n) or getattr(n, "name", ""): n for n in tree.body}
    for decorator in function.decorator_list:
        if "autotune" not in ast.unparse(decorator):
            continue
        waiting: list[ast.AST] = [decorator]
        for name in [n.id for n in ast.walk(decorator) if isinstance(n, ast.Name)]:
            waiting += [module[name]] if name in module else []
        for place in waiting:
            first = _first_in(place)
            for node in ast.walk(place):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Config") and node.args:
                    pairs = node.args[0]
                    if not isinstance(pairs, ast.Dict):
                        continue
                    told = {
                        k.value: v for k, v in zip(pairs.keys, pairs.values, strict=True) if isinstance(k, ast.Constant)
                    }
                    told |= {k.arg: k.value for k in node.keywords if k.arg in OPTIONS}
                    named = {str(k): first.get(v.id) if isinstance(v, ast.Name) else v for k, v in told.items()}
                    return {k: ast.unparse(v) for k, v in named.items() if isinstance(v, ast.Constant)}
    return {}


def _first_in(place: ast.AST) -> dict[str, ast.expr]:
    """The first value of each name that a loop or a comprehension goes through."""
    loops = [n for n in ast.walk(place) if isinstance(n, ast.comprehension | ast.For)]
    return {
        n.target.id: n.iter.elts[0]
        for n in loops
        if isinstance(n.target, ast.Name) and isinstance(n.iter, ast.List | ast.Tuple) and n.iter.elts
    }


def heuristics_of(function: ast.FunctionDef, tree: ast.Module) -> dict[str, ast.Lambda | ast.FunctionDef]:
    """What a kernel's heuristics set, by parameter: a lambda, or a function of the file."""
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    found: dict[str, ast.Lambda | ast.FunctionDef] = {}
    for decorator in function.decorator_list:
        if "heuristics" in ast.unparse(decorator):
            for node in ast.walk(decorator):
                if isinstance(node, ast.Dict):
                    for key, value in zip(node.keys, node.values, strict=True):
                        said = functions.get(value.id) if isinstance(value, ast.Name) else value
                        if isinstance(key, ast.Constant) and isinstance(said, ast.Lambda | ast.FunctionDef):
                            found[str(key.value)] = said
    return found


def _defaults(function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    arguments = function.args
    every = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    given: list[ast.expr | None] = [None] * (len(every) - len(arguments.defaults))
    told = dict(zip(every, [*given, *arguments.defaults], strict=True))
    return told | dict(zip([a.arg for a in arguments.kwonlyargs], arguments.kw_defaults, strict=True))


def _with_callers_defaults(tree: ast.Module, function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    """A function's defaults; where it has none, what a caller in the file gives, or has as its own default. Of a class
    for autograd its `apply` is called, without the context."""
    told = _defaults(function)
    of = next((n.name for n in tree.body if isinstance(n, ast.ClassDef) and function in n.body), None)
    called = {f"{of}.apply"} if of else {function.name}
    positions = [name for name in told if not (of and name in ("ctx", "self"))]
    for caller in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n is not function]:
        own = _defaults(caller)
        for call in ast.walk(caller):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in called:
                given = dict(zip(positions, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg}
                numbers = _numbers(caller)
                for name, value in given.items():
                    said = own.get(value.id) or numbers.get(value.id) if isinstance(value, ast.Name) else value
                    if name in told and told[name] is None and isinstance(said, ast.Constant):
                        told[name] = said
    return told


def _numbers(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """Names that a function gives a number once: `BLOCK = 64`, `M, N = 64, 128`."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for one, number in pairs:
            if isinstance(one, ast.Name):
                found.setdefault(one.id, []).append(number)
    return {n: v[0] for n, v in found.items() if len(v) == 1 and isinstance(v[0], ast.Constant)}


def _name_of(node: ast.AST) -> str:
    if isinstance(node, ast.AnnAssign):
        return node.target.id if isinstance(node.target, ast.Name) else ""
    return node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ""


def _second_is_heads(names: Sequence[str]) -> bool | None:
    """Of four axes by their names, whether the second is heads, or the third; None where neither is known."""
    if len(names) != 4 or not {n.lower() for n in names[1:3]} & HEADS:
        return None
    return names[1].lower() in HEADS


def _viewed(node: ast.expr | None) -> str | None:
    """`x` of `x`, `x.view(…)`, `x.reshape(…).contiguous()`; None of what is no view of one name."""
    while node is not None and not isinstance(node, ast.Name):
        if isinstance(node, ast.IfExp):
            there = re.fullmatch(r"(\w+) is not None", ast.unparse(node.test))  # x if x is not None else …
            first, second = (node.body, node.orelse) if there else (node.orelse, node.body)
            return _viewed(first) or _viewed(second)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VIEWS):
            return None
        node = node.func.value
    return node.id if node is not None else None


def _unpacked(value: ast.expr, into: list[ast.expr]) -> tuple[ast.expr, list[ast.expr]]:
    """What several names are unpacked from, and those names: of `T, D, n = *x.shape, 1`, x.shape and T and D."""
    if isinstance(value, ast.Tuple):
        at = [i for i, e in enumerate(value.elts) if isinstance(e, ast.Starred)]
        if len(at) == 1 and isinstance(starred := value.elts[at[0]], ast.Starred):
            return starred.value, into[at[0] : len(into) - (len(value.elts) - 1 - at[0])]
    return value.func if isinstance(value, ast.Call) else value, into


def _allocates(node: ast.expr) -> ast.expr | None:
    """The shape that an expression allocates, `x.shape` of what is like x; None where it allocates nothing."""
    for call in ast.walk(node):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in MAKES):
            continue
        sizes = [k.value for k in call.keywords if k.arg == "size"]
        args = [*call.args, *sizes]
        if not args:
            return None
        if call.func.attr.endswith("_like"):
            return ast.Attribute(args[0], "shape", ast.Load())
        if len(args) == 1 or isinstance(args[0], ast.Tuple | ast.List) or call.func.attr in ("empty_strided", "full"):
            return args[0]
        return ast.Tuple(args, ast.Load())
    return None


def _axis(node: ast.expr) -> int:
    """How many axes there are at least, where this one is asked for; of one counted from behind 0."""
    return node.value + 1 if isinstance(node, ast.Constant) and isinstance(node.value, int) else 0


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", text))
