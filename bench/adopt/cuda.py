"""A variant file for a kernel that somebody wrote for something else: its parameters matched to a layer's contract.

What is known is filled in: tensors and sizes by name, geometry as the source's own launcher computes it, scalars that
the contract keeps in tensors as Loaded, int64 tokens as int32. What cannot be known is a line with DECIDE in it.
"""

import functools
import keyword
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import cli
from bench.adopt.expression import Expression
from bench.adopt.launcher import Launcher, called_near, constants_near, launcher_in, launcher_near
from bench.adopt.names import (
    ALL,
    BATCHES,
    COLUMNS,
    GEMV,
    HEADS,
    MATMUL,
    MEANT,
    PROBABILITIES,
    ROWS,
    others,
    plain_name,
    words,
)
from bench.adopt.ours import COPIED, FILLED, LEFT, LSE, MOVED, ROWS_LSE, SCALED, TURNED, TYPES
from bench.adopt.structs import Structs, spread, spread_arguments, spread_tokens, structs_of, together
from bench.adopt.uses import Use, uses_of
from bench.cli import CannotGoOn
from kernels import Unavailable
from kernels.cuda import DTYPE_OF, SCALARS, cplusplus
from kernels.cuda.compiler import CompileError, parameters_of, value_of
from kernels.cuda.cplusplus import Token
from kernels.cuda.signature import Parameter, Signature, canonical, read_signatures
from reference import contract
from reference.contract import Pass

DECIDE = "DECIDE"
IMPORTED = ("Kernel", "Loaded", "as_int32", "blocks", "math", "max", "min", "most_shared", "multiprocessors")
WHOLE = ("int", "unsigned", "long", "long long", "unsigned long", "unsigned long long")
UP = 3  # folders up from a source in which what it includes may lie
BLOCK = 256  # threads, where nobody says


def _in_halves(p: Pass, signature: Signature, uses: Mapping[str, Use]) -> Pass:
    """With gate and up for what has both, where a kernel has two pointers that it reads and one that it writes."""
    pointers = [q for q in signature.parameters if q.pointer]
    reads = sum(q.const or (q.name in uses and uses[q.name].reads) for q in pointers)
    packed = [t for t in p.inputs if t.shape == "M 2*H"]
    if len(packed) != 1 or len(p.inputs) != 1 or not (reads == 2 or (len(pointers) == 3 and not reads)):
        return p
    return replace(p, inputs=(contract.Tensor("gate", "M H"), contract.Tensor("up", "M H")))


@dataclass(frozen=True)
class Guess:
    """What no name of a kernel says, and a trial in the simulator does (reader.py).

    masks: it masks by itself, in every call. heads: its attention's tensors are (B, NH, T, HS), else (B, T, NH, HS).
    keeps_lse: what goes by a name of lse's is that. turned: a product's weight is K x N. swapped: two inputs that go by
    no name known are the other way round. tried: it was right so, and nobody need look.
    """

    masks: bool = False
    heads: bool = True
    keeps_lse: bool = True
    turned: bool = False
    swapped: bool = False
    tried: bool = False

    def said(self, fields: Sequence[str]) -> str:
        """For people: these of its fields."""
        told = {
            "masks": ("takes no mask", "masks by itself"),
            "heads": ("its tensors are (B, T, NH, HS)", "its tensors are (B, NH, T, HS)"),
            "keeps_lse": ("keeps no lse", "keeps lse"),
            "turned": ("its weight is N x K", "its weight is K x N"),
            "swapped": ("its inputs are in the contract's order", "its inputs are in the other order"),
        }
        return ", ".join(told[name][getattr(self, name)] for name in fields)


NO_GUESS = Guess()


@dataclass
class Adopted:
    """The text of a variant, and how many lines are left to decide."""

    text: str
    files: dict[Path, bytes]  # the kernel's source and headers, unchanged, by where they go
    decide: list[str]
    phase: str = "forward"
    open: tuple[str, ...] = ()  # fields of its Guess that nothing but a trial tells
    squares: bool = False  # it takes square matrices alone, of which the proof has hardly any

    def noted(self, said: str, mark: str) -> "Adopted":
        """With a comment in front of the phase's function, to be decided where it has that mark."""
        line = f"# {mark}: {said}" if mark else f"# {said[0].upper()}{said[1:]}."
        begins = f"\ndef {self.phase}("
        text = self.text.replace(begins, f"\n{line}{begins}", 1)
        return replace(self, text=text, decide=[*self.decide, *([line] if mark else [])])


@dataclass(frozen=True)
class Whole:
    """Sizes that a kernel takes: multiples of `tile`, those that a product sums over of `inner`. Axes other than
    the last may be anything, unless `rows`."""

    tile: int
    inner: int
    rows: bool = True


def adopted(
    source: Path,
    layer: str,
    kernel: str | None,
    name: str,
    published: Path | None = None,
    guess: Guess = Guess(),
    whole: Whole | None = None,
    made: Callable[..., "Writer"] | None = None,
) -> Adopted:
    """The variant of a CUDA kernel.

    published: where the source lay, if that is a copy; its launch may be near. whole: other sizes are refused. made:
    what makes its writer, where a layer has one of its own.
    """
    unit = cplusplus.read(source, None, [cplusplus.HERE])
    entry = kernel or chosen(source, unit)
    defines = {} if unit.kernels(entry.partition("<")[0].strip()) else _wanted(source, entry)
    said = {word for d in unit.declarations for word in d.words}
    defines |= {name: value for name, value in HOSTS.items() if name in said}
    unit = cplusplus.read(source, defines, [cplusplus.HERE]) if defines else unit
    if further := constants_near(published or source, _undefined(unit, entry)):
        defines |= further
        unit = cplusplus.read(source, defines, [cplusplus.HERE])
    try:
        signatures = read_signatures(source, entry, defines)
    except (LookupError, ValueError) as error:
        raise CannotGoOn(str(error)) from error
    module = contract.load(layer)
    kernel_name = signatures[0].name.rpartition("::")[2]
    launcher = launcher_in(unit, kernel_name) or launcher_near(published or source, kernel_name)
    launcher = called_near(published or source, launcher) if launcher else None
    choices = [
        (made or Writer)(
            source, unit, read, phase, contract.pass_of(module, phase), launcher, entry, name, defines, guess
        )
        for read in [_read(source, unit, signature) for signature in signatures]
        for phase in contract.phases_of(module)
    ]
    writer = min(choices, key=lambda w: w.lacking)
    writer.whole = whole
    return writer.written()


STANDARD = re.compile(
    r"(FLT|DBL|INT|UINT|LONG|CHAR|SHRT|CUDART|CUDA|M)_|INFINITY$|NAN$|NULL$|HUGE_VAL"
)  # of C and CUDA


def _undefined(unit: cplusplus.Unit, entry: str) -> list[str]:
    """Names in capitals that a kernel's body has and neither it nor its source defines."""
    defined = (d for d in unit.declarations if d.kind != "function")  # an enum's, a struct's constants too
    known = unit.macros.keys() | {n for d in unit.declarations for n in d.names} | {n for d in defined for n in d.words}
    found, own = dict[str, None](), set[str]()
    for d in unit.kernels(entry.partition("<")[0].strip()):
        head = [t for part in (*d.function.template, *d.function.parameters) for t in part] if d.function else []
        own |= {t.text for t in head}
        for i, token in enumerate(d.tokens):
            name = token.text
            told = re.fullmatch(r"[A-Z][A-Z0-9_]+", name) and not STANDARD.match(name)
            if token.kind == "word" and told and name not in known | own:
                if d.tokens[i - 1].kind == "word":  # const int NAME: its own
                    own.add(name)
                elif d.tokens[i - 1].text not in (".", "->", "::") and d.tokens[i + 1].text not in ("(", "::"):
                    found[name] = None
    return [name for name in found if name not in own]


@dataclass(frozen=True)
class Read:
    """A kernel's parameters: as they are written; with what is in structs in their place, and what is never written to
    as const; what its body does with each pointer, where that is told."""

    written: Signature
    structs: Structs
    signature: Signature
    uses: Mapping[str, Use] = field(default_factory=dict)


def _read(source: Path, unit: cplusplus.Unit, written: Signature) -> Read:
    structs = structs_of(unit, written)
    signature = spread(written if structs else _asked(source, written), structs)
    names = [q.name for q in written.parameters]
    for d in unit.kernels(written.name):
        opens = next((i for i, t in enumerate(d.tokens) if t.text == "{"), None)
        if d.function and opens and [p[-1].text for p in d.function.parameters if p] == names:
            body = spread_tokens(unit.expanded(d.tokens[opens:], d.path), structs)
            uses = uses_of(body, [q.name for q in signature.parameters if q.pointer])
            told = (replace(q, const=True) if q.name in uses and not uses[q.name].writes else q
                    for q in signature.parameters)  # fmt: skip
            return Read(written, structs, replace(signature, parameters=tuple(told)), uses)
    return Read(written, structs, signature)


SCALES = words(
    "scale softmax_scale sm_scale smscale attn_scale attn_scaling scaling scale_factor softmaxscale inv_sqrt_d"
)
STRIDE = re.compile(r"(\w+?)_(?:row_)?stride(?:_row|_r|_0)?")  # from one row to the next
SCALING = (  # of a tensor's gradients
    "n = grads[i].numel()",
    "scaled = workspace[: 4 * n].view(grads[i].dtype)[:n]",
    "scale_kernel(grid=blocks(n, 256), block=256)(scaled, grads[i], Loaded(grad_scale), n)",
)
# What nvcc's host compiler defines by itself, and NVRTC does not.
HOSTS = {
    "__FLT_MAX__": "3.402823466e+38f",
    "__FLT_MIN__": "1.175494351e-38f",
    "__FLT_EPSILON__": "1.192092896e-07f",
    "__DBL_MAX__": "1.7976931348623157e+308",
    "__INT_MAX__": "2147483647",
}
GONE = {  # from C++17, or what kernels have from headers of the host's, which are empty here
    "aligned_storage": "namespace std { template <unsigned long N, unsigned long A> struct aligned_storage"
    " { struct alignas(A) type { unsigned char held[N]; }; }; }",
    "unary_function": "namespace std { template <class A, class R> struct unary_function {}; }",
    "binary_function": "namespace std { template <class A, class B, class R> struct binary_function {}; }",
}
STATE = {  # of an online softmax, a row each, and what it begins with
    **dict.fromkeys(words("m maxes row_max rowmax max_scores"), "-math.inf"),
    **dict.fromkeys(words("l sums row_sum rowsum sum_exp denominators"), "0.0"),
}
KEPT = words("mean rstd lse")  # for backward, which a kernel for inference leaves out
CONDITION = re.compile(r"^[ \t]*#[ \t]*(?:ifdef|(?:el)?if[ \t]+defined)[ \t]*\(?[ \t]*(\w+)", re.M)


def _wanted(source: Path, entry: str) -> dict[str, str]:
    """The one macro without which the source has no such kernel: it stands behind #ifdef."""
    for name in dict.fromkeys(CONDITION.findall(source.read_text(errors="replace"))):
        if cplusplus.read(source, {name: "1"}, [cplusplus.HERE]).kernels(entry.partition("<")[0].strip()):
            return {name: "1"}
    return {}


def _asked(source: Path, signature: Signature) -> Signature:
    """With the types that only the compiler knows, where there is one and no argument of a template is wanted."""
    own = signature.types
    needed = set(signature.template) - dict(signature.defaults).keys()
    if needed or all(q.type in (*DTYPE_OF, *SCALARS, *own) for q in signature.parameters):
        return signature
    try:
        found = parameters_of(source, signature.expression([], {}), (), signature.parameters)
        mixed = (q if q.type in own else f for q, f in zip(signature.parameters, found, strict=True))
        return replace(signature, parameters=tuple(mixed))
    except (CompileError, Unavailable, ValueError):
        return signature


def chosen(source: Path, unit: cplusplus.Unit) -> str:
    """The one kernel of a source. CannotGoOn where there are several, or none."""

    def of(unit: cplusplus.Unit) -> list[cplusplus.Declaration]:
        return [d for d in unit.declarations if d.function and "__global__" in d.function.qualifiers]

    behind = dict.fromkeys(CONDITION.findall(source.read_text(errors="replace")))
    found = of(unit) or [d for n in behind for d in of(cplusplus.read(source, {n: "1"}, [cplusplus.HERE]))]
    here = [d for d in found if d.path == source.resolve()] or found
    names = list(dict.fromkeys("::".join((*d.scope, d.function.name)) for d in here if d.function))
    if not names:
        raise CannotGoOn(f"{source.name} has no kernel (no __global__ function)", cli.USAGE)
    if len(names) > 1:
        raise CannotGoOn(f"{source.name} has {len(names)} kernels: --kernel {'|'.join(names)}", cli.USAGE)
    return names[0]


# --- the variant ---


class Writer:
    """One way to see a kernel as a phase of a layer. `lacking`: how much of it is not known."""

    def __init__(
        self, source, unit, read: Read, phase: str, p: Pass, launcher, entry: str, name: str, defines=(),
        guess: Guess = Guess(),
    ):  # fmt: skip
        self.guess = guess
        self.read, signature, uses = read, read.signature, read.uses
        self.unnamed = False  # whether two inputs are told by their order alone
        self.given, p = p, _in_halves(p, signature, uses)
        self.uses = uses
        self.copies: dict[str, str] = {}  # outputs that a kernel changes in place: the input that comes first
        self.turned = guess.turned  # whether it takes the weight as K x N
        self.whole: Whole | None = None  # the sizes that it takes, if not all
        self.in_call: list[str] = []  # the same in a call
        self.scratch: list[str] = []  # its sizes, Python of a shape: fp32 that the kernel's launcher allocates
        # Whether gradients are scaled for it, into the workspace.
        self.scales = {"grads", "grad_scale"} <= {t.name for t in p.inputs} and not any(
            plain_name(q.name) in ("grad_scale", *others("grad_scale")) for q in signature.parameters
        )
        self.zeroes: set[str] = set()  # outputs that it adds to, by a factor that is 0
        self.defines = dict(defines)  # of macros, for the compiler
        self.source, self.unit, self.signature, self.phase, self.p = source, unit, signature, phase, p
        self.launcher: Launcher | None = launcher
        if launcher and read.structs:
            given = spread_arguments(launcher.arguments, read.written, read.structs)
            self.launcher = replace(launcher, arguments=given)
        self.entry, self.name = entry, name
        self.decide: list[str] = []
        self.used: set[str] = set()
        self.asking: set[str] = set()  # names of the launcher's that are being worked out
        self.lines: list[str] = []
        self.needs_int: list[str] = []
        self.tensors = {t.name: t for t in (*p.inputs, *p.outputs)}
        self.loop = next((t.name for t in p.outputs if t.many), next((t.name for t in p.inputs if t.many), ""))
        self.known: dict[str, str] = {}  # C++ names with a Python value
        self.imports = {"Kernel"}
        self.matched = self._match()
        self.not_lse = ""  # a pointer that goes by lse's name, and is something else
        kept = [name for name, tensor in self.matched.items() if tensor == "lse"]
        if kept and not guess.keeps_lse:
            self.not_lse = kept[0]
            del self.matched[kept[0]]
        missing = [n for n, t in self.tensors.items() if n not in self.matched.values() and t in p.outputs]
        unmatched = [q for q in signature.parameters if q.pointer and q.name not in self.matched]
        self.lacking = 2 * len(unmatched) + len(missing) + (phase == "backward")
        called = re.search(r"(backward|bwd)|(forward|fwd)", entry.lower())
        if called and bool(called[1]) != (phase == "backward"):
            self.lacking += 100

    def _match(self) -> dict[str, str]:
        """Pointers by name: {parameter: tensor}; what is left over of one direction is matched where it is but one."""
        pointers = [q for q in self.signature.parameters if q.pointer]
        found: dict[str, str] = {}
        told = any(q.const for q in pointers)  # what is written is told from what is read
        ways = [(directed, exact) for directed in (told, False) for exact in (True, False)]
        for directed, exact in dict.fromkeys(ways):
            for q in pointers:
                if q.name in found:
                    continue
                options = [n for n in self.tensors if self._free(n, q, found) and self._fits(q, n)]
                if directed:
                    options = [n for n in options if self._written_to(n) != q.const or self.tensors[n].inplace]
                for said in [n for name in self.names_of(q) for n in dict.fromkeys((name.lower(), plain_name(name)))]:
                    name = next((n for n in options if said == n.lower() or (not exact and said in others(n))), None)
                    if name:
                        found.setdefault(q.name, name)
        for q in pointers:
            if q.name not in found and self._in_place(q) and (name := self._changed_by(q, found)):
                found[q.name] = name
        for outputs in (True, False):
            if not outputs:
                self._copied(found)
            names = [
                t.name
                for t in (self.p.outputs if outputs else self.p.inputs)
                if t.name not in (*found.values(), *self.copies.values())
            ]
            left = [q for q in pointers if q.name not in found and q.const != outputs]
            names = [n for n in names if n not in KEPT] if outputs and len(left) == 1 else names
            if len(names) == len(left) == 1 and self._fits(left[0], names[0]):
                found[left[0].name] = names[0]
        self._in_order(pointers, found)
        if not told:  # nobody says what is read: the last of each are each other's
            needed = [t.name for t in (*self.p.inputs, *self.p.outputs) if t.when is contract.always]
            names, left = [n for n in needed if n not in found.values()], [q for q in pointers if q.name not in found]
            if len(names) == len(left) == 1 and self._fits(left[0], names[0]):
                found[left[0].name] = names[0]
        return found

    def _in_order(self, pointers: Sequence[Parameter], found: dict[str, str]) -> None:
        """Two inputs that nothing names, in their order, or the other one."""
        names = [
            t.name
            for t in self.p.inputs
            if t.when is contract.always and t.name not in (*found.values(), *self.copies.values())
        ]
        left = [q for q in pointers if q.name not in found and (q.const or not self.uses.get(q.name, Use()).writes)]
        if len(names) == len(left) == 2 and all(self._fits(q, n) for q in left for n in names):
            self.unnamed = True
            found |= dict(zip([q.name for q in left], names[::-1] if self.guess.swapped else names, strict=True))

    def _in_place(self, q: Parameter) -> bool:
        return q.name in self.uses and self.uses[q.name].reads and self.uses[q.name].writes

    def _changed_by(self, q: Parameter, found: Mapping[str, str]) -> str | None:
        """The output that a pointer is which is read and written and goes by an input's name."""
        said = plain_name(q.name)
        read = next((t for t in self.p.inputs if said == t.name.lower() or said in others(t.name)), None)
        free = [t.name for t in self.p.outputs if read and t.shape == read.shape and t.name not in found.values()]
        return f"{read.name}_out" if read and f"{read.name}_out" in free else free[0] if len(free) == 1 else None

    def _copied(self, found: Mapping[str, str]) -> None:
        """What is read and written and is but an output of the contract's begins as an input that nothing else is."""
        for q in self.signature.parameters:
            t = self.tensors.get(found.get(q.name, ""))
            if not t or t not in self.p.outputs or t.inplace or t.accumulates or t.many:
                continue
            scaled = any(plain_name(other.name) == "beta" for other in self.signature.parameters if not other.pointer)
            if scaled and (q.name not in self.uses or self._in_place(q)):  # a function that it calls may read it
                self.zeroes.add(t.name)
                continue
            if not self._in_place(q):
                continue
            taken = (*found.values(), *self.copies.values())
            there = [i for i in self.p.inputs if i.when is contract.always and i.name not in taken]
            same = [i.name for i in there if i.shape == t.shape and i.dtype == t.dtype]
            first = t.name.removesuffix("_out")
            if same:
                self.copies[t.name] = first if first in same else same[0]
            elif self.is_product:  # C = A B + 0 C
                self.zeroes.add(t.name)

    def names_of(self, q: Parameter) -> list[str]:
        """What a pointer goes by, the likeliest first."""
        return [q.name]

    @property
    def is_gemv(self) -> bool:
        """Whether the layer takes a few rows of x, and the kernel has but two of its sizes: it takes one row."""
        whole = [q for q in self.signature.parameters if not q.pointer and q.type in WHOLE]
        sizes = [q for q in whole if plain_name(q.name) in (*GEMV, *ROWS)] if len(whole) > 2 else whole
        x, weight = self.tensors.get("x"), self.tensors.get("weight")
        shapes = x and weight and (x.shape, weight.shape)
        return shapes == ("M K", "N K") and len(self.tensors) == 3 and len(sizes) == 2

    @property
    def is_product(self) -> bool:
        """Whether the layer multiplies two matrices."""
        return [self.tensors[n].shape for n in ("x", "weight") if n in self.tensors] == ["M K", "N K"]

    def sizes_told(self) -> list[str]:
        """What the kernel calls the whole numbers that it is told, in order."""
        numbers = [q for q in self.signature.parameters if not q.pointer and q.type in (*WHOLE, "")]
        return [n for q in numbers if not re.search("stride|eps|scale", n := plain_name(q.name))]

    @functools.cached_property
    def one_row(self) -> bool:
        """Whether all that it is told of sizes, and all that its grid comes from, is one length, of a layer that has
        rows: it takes one row."""
        told, shape = self.sizes_told(), self.tensors[self.main()].shape.split() if self.main() else []
        squares = self.is_product and len(self.tensors) > 3  # one length of all of its matrices
        if len(told) != 1 or len(shape) < 2 or self.is_gemv or squares or "NH" in self.says() or not self.launched:
            return False
        if self._is_packed() and told[0].startswith("half"):
            return True
        return told[0] in ROWS & (ALL | COLUMNS) and not self._grid_rows()

    def _grid_rows(self) -> set[str]:
        """Names of rows, other than the sizes that the kernel is told, that its launch's grid comes from."""
        told = (*self.sizes_told(), *ALL)
        return {w for w in self._grid_words() if w == "shape" or ((n := plain_name(w)) in ROWS and n not in told)}

    @property
    def launched(self) -> bool:
        """Whether its source's own launch is known."""
        return self.launcher is not None

    def _grid_words(self) -> set[str]:
        """The names that its launch's grid is made of."""
        assert self.launcher
        words, defined = _texts(self.launcher.grid), dict(self.launcher.defined)
        while more := {t.text for w in words if w in defined for t in defined[w]} - words:
            words |= more
        return words

    def _is_packed(self) -> bool:
        """Whether it takes gate and up as one tensor."""
        return self.given is self.p and [t.shape for t in self.p.inputs] == ["M 2*H"]

    def _halves_it(self, said: str) -> bool:
        """Whether a size is divided by two on the way to the launch, or in the kernel."""
        launcher = self.launcher
        parts = [v for _, v in launcher.defined] + [launcher.grid] if launcher else []
        parts += [d.tokens for d in self.unit.kernels(self.signature.name)]
        texts = [" ".join(t.text for t in part) for part in parts]
        return any(re.search(rf"\b{re.escape(said)} (/ 2|> > 1)\b", text) for text in texts)

    def _written_to(self, name: str) -> bool:
        return self.tensors[name] in self.p.outputs

    def _free(self, name: str, q: Parameter, found: dict[str, str]) -> bool:
        """Whether a tensor is nobody's yet; what is updated in place may be read and written by two pointers."""
        theirs = [p for p in self.signature.parameters if found.get(p.name) == name]
        return not theirs or (self.tensors[name].inplace and [p.const for p in theirs] == [not q.const])

    def _fits(self, q: Parameter, name: str) -> bool:
        """Whether a pointer's type and direction are a tensor's."""
        tensor = self.tensors[name]
        if name == "logits" and plain_name(q.name) in PROBABILITIES:
            return False
        if q.name in self.uses and self.uses[q.name].writes and tensor not in self.p.outputs:
            return False
        if not q.type:  # Triton's
            return True
        if tensor.dtype == "int":
            return q.type in ("int", "unsigned", "long", "long long", "unsigned long", "unsigned long long")
        if (tensor.dtype == "int8") != (q.type in ("char", "signed char")):
            return False
        if q.const and tensor in self.p.outputs and not tensor.inplace:
            return False
        return q.type not in ("int", "long", "long long", "unsigned")

    def written(self) -> Adopted:
        head = self._geometry()
        each = [self.argument(i, q) for i, q in enumerate(self.signature.parameters)]
        arguments = together(each, self.read.written, self.read.structs)
        indent = "    " * (2 if self.loop else 1)
        keywords = "".join(f", {n}={v}" for n, v in head["template"].items())
        shared = f", shared={head['shared']}" if head["shared"] not in ("", "0") else ""
        call = f"{self.phase}_kernel(grid={head['grid']}, block={head['block']}{shared}{keywords})"
        asserted = [*self._asserted(), *self._too_much(head["shared"]), *self._too_many(head["block"])]
        body = [f"    {line}" for line in (*self._halves(), *self.refusals())]
        sizes = list(self.sizes(f"{call} {', '.join(arguments)} {' '.join(asserted)}"))
        body += [f"    {line}" for line in (*sizes, *self._in_whole(sizes))]
        if self.loop:
            body.append(f"    for i in range(len({self.loop})):")
        body += [f"{indent}{line}" for line in (*self.lines, *asserted)]
        if self.turned:
            self.imports.add("blocks")
            body.append(f"{indent}turned = workspace[: weight.numel() * weight.element_size()].view(weight.dtype)")
            body.append(f"{indent}turn = turn_kernel(grid=blocks(weight.numel(), 256), block=256)")
            body.append(f"{indent}turn(turned, weight, *weight.shape)")
        if self.scales:
            self.imports |= {"blocks", "Loaded"}
            body += [f"{indent}{line}" for line in SCALING]
        for out, begins_as in self.copies.items():
            self.imports.add("blocks")
            body.append(
                f"{indent}copy_kernel(grid=blocks({out}.numel(), 256), block=256)({out}, {begins_as}, {out}.numel())"
            )
        moved, back = self._moved()
        body += [f"{indent}{line}" for line in moved]
        body.append(f"{indent}launch = {call}")
        body.append(f"{indent}launch({', '.join(arguments)})")
        body += [f"{indent}{line}" for line in back]
        left = self._left()
        if left == ["lse"] and "logits" in self.tensors:
            body.append("    left_kernel(grid=lse.numel(), block=32)(lse, logits, V, logits.shape[-1])")
        elif left == ["lse"]:
            self.imports.add("Strided")
            body += [
                "    launch = left_kernel(grid=(q.shape[1], q.shape[0] * q.shape[2]), block=32)",
                "    heads, group = q.shape[2], q.shape[2] // k.shape[2]",
                "    strides = *q.stride()[:3], *k.stride()[:3]",
                "    launch(lse, Strided(q), Strided(k), heads, group, q.shape[3], causal, *strides)",
            ]
        elif left:
            of, told = self._normed(), ", ".join(n if n in left else "None" for n in ("mean", "rstd"))
            eps = "eps" if "eps" in self.p.positional() else "1e-5"
            body.append(f"    rows, columns = {of}.numel() // {of}.shape[-1], {of}.shape[-1]")
            body.append(
                f"    left_kernel(grid=rows, block=32, MEAN={'mean' in self.tensors})({of}, {told}, columns, {eps})"
            )
        workspace = ", workspace" if self.needs_int or self.turned or self.scales or self.moves() else ""
        names = f"{', '.join(self.given.positional())}, *, {', '.join(self.given.keyword())}{workspace}"
        made = "logsumexp" if left == ["lse"] else "statistics"
        filled = any("fill_kernel" in line for line in body)
        files: dict[Path, bytes] = {}
        relative = self._copied_to(files).as_posix()
        text = [
            f'"""{self.signature.name} of {self.source.name}, as it is'
            + (f'; launched as its {self.launcher.name} does."""' if self.launcher else '."""'),
            "",
            *(["import math"] if self.scales or any("math." in line for line in body) else []),
            *(["", "import torch"] if any("torch." in line for line in body) else []),
            *([""] if self.scales or any("math." in line or "torch." in line for line in body) else []),
            *(["from kernels import Unavailable"] if any("Unavailable" in line for line in body) else []),
            f"from kernels.cuda import {', '.join(sorted(self.imports, key=str.lower))}",
            "",
            f"DTYPES = {self._dtypes()}",
            f'{self.phase}_kernel = Kernel("{relative}", "{self.entry}")',
            *([f'left_kernel = Kernel("{self.name}/left.cu", "{made}")  # {", ".join(left)}'] if left else []),
            *([f'move_kernel = Kernel("{self.name}/left.cu", "moved")  # q, k, v of their own'] if moved else []),
            *([f'fill_kernel = Kernel("{self.name}/left.cu", "filled")'] if filled else []),
            *([f'copy_kernel = Kernel("{self.name}/left.cu", "copied")  # it works in place'] if self.copies else []),
            *(
                [f'scale_kernel = Kernel("{self.name}/left.cu", "scaled")  # it scales no gradients']
                if self.scales
                else []
            ),
            *([f'turn_kernel = Kernel("{self.name}/left.cu", "turned")  # it takes K x N'] if self.turned else []),
            "",
            "",
            *self._workspace(),
            f"def {self.phase}({names}):",
            *body,
            "",
        ]
        ours = (LEFT if left and left != ["lse"] else "") + (
            (ROWS_LSE if "logits" in self.tensors else LSE) if left == ["lse"] else ""
        )
        ours += (
            (MOVED if moved else "")
            + (FILLED if filled else "")
            + (COPIED if self.copies else "")
            + (TURNED if self.turned else "")
            + (SCALED if self.scales else "")
        )
        files |= {Path(self.name) / "left.cu": (TYPES + ours).encode()} if ours else {}
        whole = "\n".join(text)
        decide = [line.strip() for line in whole.splitlines() if DECIDE in line] + self.decide
        squares = any("not square" in line for line in self._of_squares())
        return Adopted(whole, files, decide, self.phase, self.opens(), squares)

    def _copied_to(self, files: dict[Path, bytes]) -> Path:
        """The file that the kernel is compiled from: its source, among `files` with its headers, or, where it wants
        something defined first, one that does and includes it."""
        first, inside = self._first(), Path(self.name) / self._inside()
        entered = inside / (f"{self.source.stem}_defined.cu" if first else self.source.name)
        if first:
            files[entered] = "\n".join([*first, f'#include "{self.source.name}"', ""]).encode()
        for path, found in self.unit.sources.items():
            name = self.source.name if path == self.source.resolve() else found.name
            if Path(name).is_absolute() or ".." in Path(name).parts[UP:]:
                self.decide.append(f"# {DECIDE}: {name} lies elsewhere and was not copied")
                continue
            files[Path(os.path.normpath(inside / name))] = path.read_bytes()
        return entered

    def _inside(self) -> Path:
        """The folders that the source lies in, as far up as it includes from ("../utils/common.cuh")."""
        names = [found.name for found in self.unit.sources.values()]
        up = max((sum(part == ".." for part in Path(name).parts) for name in names), default=0)
        return Path(*self.source.resolve().parent.parts[-up:]) if 0 < up <= UP else Path()

    def opens(self) -> tuple[str, ...]:
        """The fields of a guess that this kernel leaves open, once it is written."""
        names = self.p.positional()[len(self.p.inputs) :]
        product = self.is_product and not self.is_gemv
        kept = [self.not_lse] if self.not_lse else [q for q, name in self.matched.items() if name == "lse"]
        heads = bool(self.moves() or self._sees_heads())
        found = {
            "masks": "causal" in names and "causal" not in self.used,
            "heads": heads,
            "keeps_lse": heads and self.phase == "forward" and kept not in ([], ["lse"]),
            "turned": product and self.phase == "forward" and "weight" in self.matched.values(),
            "swapped": self.unnamed,
        }
        return tuple(name for name, yes in found.items() if yes)

    def _sees_heads(self) -> set[str]:
        """Tensors whose second axis is heads or positions, by a guess: Triton's."""
        return set()

    def _halves(self) -> list[str]:
        """Gate and up, where the kernel has two pointers for what is one tensor here: of one row they lie in a row."""
        if self.given is self.p:
            return []
        x = self.given.inputs[-1].name
        return [
            f"if {x}.shape[0] > 1:",
            '    raise Unavailable("several rows: gate and up are one tensor here, and two there")',
            f"gate, up = {x}[:, : {x}.shape[1] // 2], {x}[:, {x}.shape[1] // 2 :]",
        ]

    def _first(self) -> list[str]:
        """What comes before the source: macros that it stands behind, what it has from headers that are empty here."""
        gone = [text for name, text in GONE.items() if any(name in d.words for d in self.unit.declarations)]
        return [*(f"#define {name} {value}" for name, value in self.defines.items()), *gone]

    def _normed(self) -> str:
        """What a norm's statistics are of."""
        return next((n for n in ("residual_out", "x") if n in self.tensors), "")

    def _left(self) -> list[str]:
        """A norm's statistics, which kernels for inference do not keep: a launch of ours makes them."""
        if self.phase == "forward" and {"logits", "losses", "lse"} <= self.tensors.keys():
            return [] if "lse" in self.matched.values() else ["lse"]
        if self.phase == "forward" and {"q", "k", "lse"} <= self.tensors.keys():
            return [] if "lse" in self.matched.values() else ["lse"]
        if self.phase != "forward" or not self._normed() or not {"out", "rstd"} <= self.tensors.keys():
            return []
        return [n for n in ("mean", "rstd") if n in self.tensors and n not in self.matched.values()]

    def _dtypes(self) -> str:
        work = {q.type for q in self.signature.parameters if q.pointer and q.name in self.matched
                and self.tensors[self.matched[q.name]].dtype == "work"}  # fmt: skip
        if work & self.signature.types:
            return '("fp32", "bf16")'
        told = {"float": "fp32", "__nv_bfloat16": "bf16", "__half": "fp16", "float4": "fp32"}
        found = sorted({told[kind] for kind in work if kind in told})
        unknown = sorted(kind for kind in work if kind not in DTYPE_OF)
        dtypes = found or (["fp32", "bf16"] if unknown else ["fp32"])
        text = f"({', '.join(repr(d) for d in dtypes)}{',' * (len(dtypes) == 1)})".replace("'", '"')
        return f"{text}  # {DECIDE}: what {', '.join(unknown)} is" if unknown else text

    def refusals(self) -> Iterator[str]:
        """What the contract may ask for and the kernel has no parameter for."""
        for q, name in self.matched.items():
            if self.tensors[name].when is not contract.always and name not in self.copies and self._must_be_there(q):
                yield f"if {name} is None:"
                yield f'    raise Unavailable("no {name}")'
        for t in (*self.p.inputs, *self.p.outputs):
            if t.name not in self.matched.values() and t.when is not contract.always:
                yield f"if {t.name} is not None:"
                yield f'    raise Unavailable("{t.name}")'
            elif t.name in self.copies.values() or (t.name == "grad_scale" and self.scales):
                continue
            elif t.name not in self.matched.values() and not self._loads(t.name) and t.name not in self._left():
                yield f"# {DECIDE}: the kernel has no parameter for {t.name}"
        main = self.main()
        one = self.launcher and [t.text for t in self.launcher.grid] == ["1"] and self.tensors[main].dtype == "work"
        if self.one_row or (one and len(self.tensors[main].shape.split()) > 1 and not self.is_gemv):
            yield f"if {main}.numel() > {main}.shape[-1]:"
            yield '    raise Unavailable("several rows")'
        yield from self._of_squares()
        yield from self._of_heads()
        if self.phase == "forward" and {"logits", "losses"} <= self.tensors.keys() and "V" not in self.used:
            yield "if V != logits.shape[-1]:"
            yield '    raise Unavailable("columns that do not count")'
        if "tokens" in self.used:
            yield "if tokens.numel() > 1:"
            yield '    raise Unavailable("several tokens")'
        if self.is_gemv:
            yield "if x.shape[0] > 1:"
            yield '    raise Unavailable("several rows")'
        for name in self.p.positional()[len(self.p.inputs) :]:
            if name in self.used:
                continue
            if name == "eps" and (only := self._own_eps()):
                yield f"if abs(eps - {only}) > 0.01 * {only}:"
                yield f'    raise Unavailable("eps is not {only}")'
            if name == "weight_decays":
                yield "if any(weight_decays):"
                yield '    raise Unavailable("weight decay")'
            if name == "accumulate" and not self.adds:
                open_ = (
                    ""
                    if self.adds is False
                    else f"  # {DECIDE}: `not accumulate`, where the kernel adds to what is there"
                )
                yield f"if accumulate:{open_}"
                yield '    raise Unavailable("accumulation")'
            elif name == "causal":
                other = "" if self.guess.tried else f"  # {DECIDE}: `not causal`, where the kernel masks by itself"
                said = "not causal" if self.guess.masks else "causal"
                yield f"if {said}:{other}"
                yield f'    raise Unavailable("{said}")'

    def _own_eps(self) -> str:
        """The one small constant in the kernel's body, which has no parameter for eps; "" where there is none."""
        bodies = [d for d in self.unit.kernels(self.signature.name) if d.function]
        numbers = {
            re.sub(r"(?i)(?<=\d)f$", "", t.text)
            for d in bodies[:1]
            for t in self.unit.expanded(d.tokens, d.path)
            if t.kind == "number" and re.fullmatch(r"(?i)\d*\.?\d*e-\d+f?|0?\.0{3,}\d+f?", t.text)
        }
        return numbers.pop() if len(numbers) == 1 else ""

    def _of_squares(self) -> Iterator[str]:
        """What a product does not take that is told one length of all of its matrices."""
        shapes = [t.shape for t in self.p.inputs[:2]]
        if shapes != ["M K", "N K"] or len(self.sizes_told()) != 1 or self.read.structs or self.signature.template:
            return
        vector = len(self.tensors) == 3  # decode's layer
        yield f"if {'x.shape[0] > 1 or ' * vector}len({{{'*x.shape, ' * (not vector)}*weight.shape}}) > 1:"
        yield '    raise Unavailable("matrices that are not square")'

    def _must_be_there(self, pointer: str) -> bool:
        """Whether the kernel takes it for granted."""
        return pointer in self.uses and not self.uses[pointer].asked

    @property
    def adds(self) -> bool | None:
        """Whether it adds to all that accumulates, or to nothing of that; None where its body does not say."""
        uses = [self.uses.get(q) for q, name in self.matched.items() if self.tensors[name].accumulates]
        told = {use.reads and use.writes for use in uses if use}
        return told.pop() if len(told) == 1 and all(uses) else None

    def _of_heads(self) -> Iterator[str]:
        """What a kernel for an attention of its own layout does not take."""
        packed = [t.name for t in self.p.inputs if t.pack]
        if not packed or not set(packed) <= set(self.matched.values()):
            return
        if "NKV" not in self.says():
            yield "if k.shape[2] != q.shape[2]:"
            yield '    raise Unavailable("grouped queries")'
        if not self.moves():
            return
        if not {"B", "NH", "BH"} & self.says() and self.launcher:
            yield "if q.shape[0] * q.shape[2] > 1:"
            yield '    raise Unavailable("several heads")'
        given = dict(zip(self.signature.template, self.launcher.template if self.launcher else (), strict=False))
        told = [self._literal(v) for name, v in given.items() if HEADS.get(plain_name(name)) == "HS"]
        fixed = [v for name in self._body_words() if HEADS.get(plain_name(name)) == "HS" and (v := self._number(name))]
        fixed += [v for v in told if v]
        for size in dict.fromkeys(fixed[:1]):
            yield f"if q.shape[3] != {size}:"
            yield f'    raise Unavailable("head size is not {size}")'

    def says(self) -> set[str]:
        """Sizes of heads that the kernel's parameters or its launch name: B, NH, NKV, T, HS; BH for the first two."""
        names = {q.name for q in self.signature.parameters if not q.pointer}
        if self.launcher:
            parts = (self.launcher.grid, *(v for _, v in self.launcher.defined), *self.launcher.arguments)
            names |= _texts(*parts) | {name for name, _ in self.launcher.defined}
            names |= set(self.launcher.parameters)
        plain = [re.sub(r"^(qkv|q)_(?=\w)", "", plain_name(n)) for n in names]
        told = {HEADS[n] for n in plain if n in HEADS} | {n for n in names if n in ("B", "NH", "NKV")}
        return told | ({"BH"} if BATCHES & {n.lower() for n in names} else set())

    def _body_words(self) -> list[str]:
        own = {q.name for q in self.signature.parameters} | set(self.signature.template)
        bodies = [d for d in self.unit.kernels(self.signature.name) if d.function]
        return [w for d in bodies[:1] for w in sorted(d.words) if w not in own]

    def _number(self, name: str) -> str:
        """A macro's or a constant's value, where it is a number."""
        macro = self.unit.macros.get(name)
        told = (
            macro.body[0].text if macro and macro.parameters is None and len(macro.body) == 1 else self._constant(name)
        )
        return told if told and told.isdigit() else ""

    def _literal(self, tokens: Sequence[Token]) -> str:
        """The number that an argument of the launch is, or a constant that the launcher defines has."""
        defined = dict(self.launcher.defined) if self.launcher else {}
        tokens = defined.get(tokens[0].text, tokens) if len(tokens) == 1 else tokens
        if len(tokens) != 1:
            return ""
        return tokens[0].text if tokens[0].text.isdigit() else self._number(tokens[0].text)

    def _asserted(self) -> list[str]:
        """What the launcher asserts of sizes before its launch, as refusals; what cannot be read is left out."""
        lines = []
        for asked, labels in self.launcher.cases if self.launcher else ():
            while asked and asked[0].text == "(" and cplusplus.closing(asked, 0) == len(asked) - 1:
                asked = asked[1:-1]
            if (text := self._python(asked)) and not text.isdigit():
                said = "".join(t.text for t in asked)
                told = f"no instance for {said} but {', '.join(labels)}"
                lines += [f"if {text} not in ({', '.join(labels)},):", f'    raise Unavailable("{told}")']
        for tokens in self.launcher.asserted if self.launcher else ():
            texts = [t.text for t in tokens]
            tokens = tokens[: texts.index("&&")] if "&&" in texts else tokens  # && "why"
            before, earlier = len(self.lines), dict(self.known)
            text = self._python(tokens)
            if len(self.lines) > before:  # it asks for what a person would have to say
                del self.lines[before:]
                self.known = earlier
                continue
            if text and re.search(r"[<>=]", text):
                said = " ".join(t.text for t in tokens).replace(" :: ", "::").replace('"', "'")
                lines += [f"if not ({text}):", f'    raise Unavailable("not {said}")']
        return lines

    def _too_much(self, shared: str) -> list[str]:
        """A refusal where the dynamic shared memory grows with the shape."""
        if not self._grows(shared):
            return []
        self.imports.add("most_shared")
        return [
            f"if {shared} > most_shared({self.first()}):",
            '    raise Unavailable("more shared memory than a block has")',
        ]

    def _too_many(self, block: str) -> list[str]:
        """A refusal where the threads of a block grow with the shape."""
        if not self._grows(block) or "(" in block or re.search(rf"^{block} = \(", "\n".join(self.lines), re.M):
            return []
        return [f"if {block} > 1024:", '    raise Unavailable("more threads than a block has")']

    def _grows(self, value: str) -> bool:
        """Whether Python of a launch has the shape in it."""
        set_to = dict(line.partition("  #")[0].split(" = ", 1) for line in self.lines if " = " in line)
        symbols = {s for t in self.tensors.values() for s in t.shape.split()}
        reached, waiting = set[str](), set(re.findall(r"[A-Za-z_]\w*", value))
        while waiting:
            name = waiting.pop()
            reached.add(name)
            waiting |= set(re.findall(r"[A-Za-z_]\w*", set_to.get(name, ""))) - reached
        return bool(reached & symbols)

    def _loads(self, name: str) -> bool:
        return name in self.used

    def sizes(self, launch: str) -> Iterator[str]:
        """The sizes that the lines below and the launch name, from a tensor's shape."""
        wanted = set(re.findall(r"[A-Za-z_]\w*", " ".join(self.lines) + " " + launch))
        for t in (*self.p.inputs, *self.p.outputs):
            symbols = t.shape.split()
            plain = not t.many and t.when is contract.always and all(s.isidentifier() for s in symbols)
            if plain and wanted & set(symbols):
                names = [s if s in wanted else "_" for s in symbols]
                yield f"{symbols[0]} = {t.name}.numel()" if len(names) == 1 else f"{', '.join(names)} = {t.name}.shape"
                wanted -= set(symbols)

    def _in_whole(self, sizes: list[str]) -> Iterator[str]:
        """A refusal of sizes that are no whole tiles or packs."""
        if not self.whole:
            return
        shapes = [t.shape.split() for t in (*self.p.inputs, *self.p.outputs) if t.shape]
        made = {symbol for t in self.p.outputs for symbol in t.shape.split()}
        last = {shape[-1] for shape in shapes}
        named = [n for line in sizes for n in re.findall(r"\w+", line.partition(" = ")[0]) if n != "_"]
        groups = [(self.whole.tile, [n for n in named if n in made and (self.whole.rows or n in last)])]
        groups.append((self.whole.inner, [n for n in named if n not in made]))
        for tile, names in groups:
            if names:
                yield f"if {' or '.join(f'{n} % {tile}' for n in names)}:"
                yield f'    raise Unavailable("{", ".join(names)}: no multiple of {tile}")'

    def moves(self) -> list[str]:
        """An attention's tensors that the kernel is given as such of their own, rather than slices of a packed one."""
        if not any(t.pack for t in self.p.inputs):
            return []
        every = [t for t in (*self.p.inputs, *self.p.outputs) if len(t.shape.split()) == 4]
        there = [t for t in every if t.name in self.matched.values()]
        return [t.name for t in there if t.pack or self.guess.heads]

    def begins_at_zero(self, q: Parameter) -> set[str]:
        """Outputs in memory of ours that the kernel reads, too."""
        written = {t.name for t in self.p.outputs}
        if q.name in self.uses and self._in_place(q) and self.matched[q.name] in written:
            self.imports.add("zeroed")
            return {self.matched[q.name]}
        return set()

    def _moved(self) -> tuple[list[str], list[str]]:
        """Lines before and after the launch that move an attention's tensors into memory of ours, and back."""
        names = self.moves()
        if not names:
            return [], []
        self.imports |= {"blocks", "Strided"}
        axes = ".transpose(1, 2)" if self.guess.heads else ""
        before, after = ["n = q.numel() * q.element_size()"], []
        for i, name in enumerate(names):
            before.append(f"{name}_ = workspace[{i} * n : {i + 1} * n].view({name}.dtype).view({name}{axes}.shape)")
            if self.tensors[name] in self.p.inputs:
                before.append(f"move({name}_, {name}{axes})")
            else:
                after.append(f"move({name}, {name}_{axes})")
        return before, after

    def _workspace(self) -> list[str]:
        if self.moves():
            n = " * ".join(f'shape["{s}"]' for s in ("B", "T", "NH", "HS"))
            size = f"4 * {len(self.moves())} * {n}"
            for part in self.scratch:
                size += f" + 4 * {part}"
            move = "    move_kernel(grid=blocks(x.numel(), 256), block=256)(\n        to, Strided(x), *x.shape[1:], "
            return [
                "def workspace(shape, phase):",
                f"    return {size}  # {', '.join(self.moves())} as the kernel has them",
                "",
                "",
                "def move(to, x):",
                *(move + "*x.stride()[:3], x.numel()\n    )").splitlines(),
                "",
                "",
            ]
        if self.scales:
            size = 'return 4 * max(math.prod(sizes) for sizes in shape["tensors"])  # gradients, scaled'
            return ["def workspace(shape, phase):", f"    {size}", "", ""]
        if self.turned:
            return ["def workspace(shape, phase):", '    return 4 * shape["N"] * shape["K"]  # weight, turned', "", ""]
        if not self.needs_int:
            return []
        size = " + ".join(
            "4 * " + " * ".join(f'shape["{s}"]' for s in self.tensors[n].shape.split()) for n in self.needs_int
        )
        return ["def workspace(shape, phase):", f"    return {size}  # int32 of {', '.join(self.needs_int)}", "", ""]

    # --- values ---

    def main(self) -> str:
        """The tensor whose rows and columns sizes are."""
        return max(
            (t for t in (*self.p.outputs, *self.p.inputs) if not t.many and t.shape and not t.parameter),
            key=lambda t: (len(t.shape.split()), t.dtype == "work"),
            default=contract.Tensor("", ""),
        ).name

    def scalar(self, said: str) -> str | None:
        """Python of a size or number that goes by a name."""
        plain = plain_name(said)
        main = self.tensors.get(self.main())
        symbols = main.shape.split() if main else []
        causal = "causal" in self.p.positional() and plain in (
            "is_causal",
            "iscausal",
            "causal_mask",
            "use_causal_mask",
        )
        if causal:
            self.used.add("causal")
            return "causal"
        every = {s for t in self.tensors.values() if not t.many for s in t.shape.split() if s.isidentifier()}
        if plain in SCALES and "causal" in self.p.positional() and "NH" not in every:  # of a softmax's scores
            return "1.0"
        if "tokens" in self.tensors and plain in ("token", "token_id", "tok"):  # by value
            self.imports.add("Loaded")
            self.used.add("tokens")
            return "Loaded(tokens)"
        if (of := STRIDE.fullmatch(plain)) and (name := self._tensor_called(of[1])):
            return f"{name}.shape[-1]"
        if self.loop and plain in ALL:
            return f"{self.loop}[i].numel()"
        scalars = self.p.positional()[len(self.p.inputs) :]
        told = {q.name for q in self.signature.parameters if not q.pointer}
        told_plain = set(map(plain_name, told))
        if self.is_gemv and plain == "n" and "m" in map(plain_name, told):  # M x N
            return "K"
        if self.is_gemv and plain in GEMV and not {"n", "d"} <= told:
            return GEMV[plain]
        if {"M", "N", "K"} <= every and plain in "mnk" and self._is_crossed() is not None:
            return {"m": "N", "n": "M"}.get(plain, "K") if self._is_crossed() else plain.upper()
        if said in every or said in scalars:
            self.used.add(said)
            return said
        if {"M", "N", "K"} <= every and {"n", "d"} <= told and plain in ("n", "d"):  # as llama2.c calls them
            return "K" if plain == "n" else "N"
        if {"M", "N", "K"} <= every and plain == "ldb":
            return "N" if self.turned else "K"
        if {"M", "N", "K"} <= every and plain in MATMUL:
            return MATMUL[plain]
        if "NH" in every:
            plain = re.sub(r"^(qkv|q)_(?=\w)", "", plain)
            if plain in SCALES:
                return "HS**-0.5"
            alone = {"NH": "B", "B": "NH"}.get(HEADS.get(plain, ""), "")  # heads of all sequences, or the other way
            if said.lower() in BATCHES or (alone and self.moves() and alone not in self.says()):
                return "B * NH"
            if plain in ("stride_head", "head_stride") and self.moves():
                return "T * HS" if self.guess.heads else "HS"
        if "NH" in every and plain in ("n", "s", "l", "seq"):
            return "T"
        if plain in HEADS and HEADS[plain] in every:
            return HEADS[plain]
        if said.upper() in every and len(said) > 1:
            return said.upper()
        if len(symbols) == 1 and not self.loop:  # of a matrix that is one row here
            beside = {plain_name(name) for name in told} - {plain}
            if plain in ROWS and beside & (COLUMNS - ROWS | {"n"}) and not beside & (ROWS - COLUMNS):
                return "1"
            if plain in COLUMNS and beside & (ROWS - COLUMNS):
                return symbols[0]
        if len(symbols) == 1 and plain in ALL | ROWS:
            return symbols[0]
        if len(symbols) > 1 and self.one_row and plain in (*self.sizes_told(), *ALL):
            return f"2 * {symbols[-1]}" if self._is_packed() and self._halves_it(said) else symbols[-1]
        if plain == "inner_size" and told_plain & (COLUMNS - {plain}):  # behind the axis that a row is
            return "1"
        if len(symbols) > 1 and self.sizes_told() == [plain] and plain in ALL and self.launched and self._grid_rows():
            return symbols[-1]  # the grid has the rows
        if len(symbols) > 1 and {"n", "m"} <= told_plain and plain in "nm":  # whichever comes first has the rows
            return " * ".join(symbols[:-1]) if plain == next(n for n in self.sizes_told() if n in "nm") else symbols[-1]
        if len(symbols) > 1 and plain in ROWS and not (plain in COLUMNS and self._has_rows(plain)):
            return " * ".join(symbols[:-1])
        if len(symbols) > 1 and plain in COLUMNS:
            return symbols[-1]
        if plain in ALL and symbols:
            return " * ".join(symbols)
        for name in scalars:
            if plain == name.lower() or plain in others(name):
                self.used.add(name)
                return f"{name}[i]" if name == "weight_decays" else name
        if found := re.fullmatch(r"beta_?([12])_?(correction|corr)|bias_?correction_?([12])", plain):
            which = f"beta{found[1] or found[3]}"
            self.imports.add("Loaded")
            self.used |= {which, "step"}
            return f'Loaded(step, f"1 - powf({{{which}!r}}f, x)")' if "step" in self.tensors else None
        for name, t in self.tensors.items():
            if t.shape == "" and (plain == name.lower() or plain in others(name)):
                self.imports.add("Loaded")
                self.used.add(name)
                return f"Loaded({name})"
        return MEANT.get(plain) if plain in ("eps", "epsilon") or "losses" in self.tensors else None

    def _tensor_called(self, said: str) -> str | None:
        """The tensor of several rows that goes by a name, of those that the kernel is given."""
        names = [n for q, n in self.matched.items() if said in (plain_name(q), n.lower(), *others(n))]
        return next((n for n in names if len(self.tensors[n].shape.split()) > 1 and not self.tensors[n].many), None)

    def _is_crossed(self) -> bool | None:
        """Whether a product of N x K and K x M is meant, by the order of its sizes; None of other sizes."""
        told = self.sizes_told()
        return told.index("n") < told.index("m") if set("mnk") <= set(told) else None

    def _has_rows(self, said: str) -> bool:
        """Whether another size can only be the rows', and none other the columns': M and N, batch and N."""
        names = {plain_name(q.name) for q in self.signature.parameters if not q.pointer} - {said}
        return bool(names & (ROWS - COLUMNS)) and not names & COLUMNS

    def argument(self, number: int, q: Parameter) -> str:
        if q.pointer:
            if q.name in self.matched:
                return self._tensor(q, self.matched[q.name])
            given = self.launcher.arguments[number : number + 1] if self.launcher else []
            if given and [t.text for t in given[0]] in (["NULL"], ["nullptr"], ["0"]):
                return "None"
            if given and (memory := self._scratch(q, given[0])):
                return memory
            begins = STATE.get(plain_name(q.name), "") if self.moves() and not q.const else ""
            if q.name == self.not_lse or begins:
                return self._room(q, ["B", "NH", "T"], begins)
            self.lines.append(f"# {DECIDE}: {q.type}* {q.name}, which is none of {', '.join(self.tensors)}")
            return "None"
        if q.type == "empty":
            return "()"
        value = None
        if self.launcher and number < len(self.launcher.arguments):
            value = self._python(self.launcher.arguments[number])
        given = self.launcher.arguments[number : number + 1] if self.launcher else []
        named = [t.kind for part in given for t in part] == ["word"]
        if value is not None and named and self._is_size(q) and not re.search(r"[A-Za-z_]", value):
            value = self.scalar(q.name) or value  # a constant of the file's, which has it for sizes of its own
        value = self.scalar(q.name) if value is None else value
        if value is None:
            self.lines.append(f"{_safe(q.name)} = 0  # {DECIDE}: {q.type} {q.name}")
            return _safe(q.name)
        return value

    def _scratch(self, q: Parameter, given: Sequence[Token]) -> str | None:
        """Memory of ours for what the launcher allocates by torch::zeros, ones, empty or full of a shape in braces."""
        defined = [v for n, v in self.launcher.defined if n == given[0].text] if self.launcher and self.moves() else []
        made = next((v for v in defined if [t.text for t in v[:2]] in (["torch", "::"], ["at", "::"])), [])
        texts = [t.text for t in made]
        if texts[3:5] != ["(", "{"]:
            return None
        close = cplusplus.closing(made, 4)
        told = [self.scalar(p[0].text) if len(p) == 1 else None for p in cplusplus.split_commas(made[5:close])]
        sizes = [size for part in told for size in (part or "?").split(" * ")]
        filled = {"zeros": "0.0", "ones": "1.0", "empty": "", "full": "?"}.get(texts[2])
        if filled == "?":
            rest = "".join(texts[close + 2 : cplusplus.closing(made, 3)]).partition(",")[0]
            filled = {"-INFINITY": "-math.inf", "-FLT_MAX": "-3.4028234663852886e38", "INFINITY": "math.inf"}.get(rest)
        if filled is None or any(s not in ("B", "NH", "T", "HS") for s in sizes):
            return None
        return self._room(q, sizes, filled)

    def _room(self, q: Parameter, sizes: Sequence[str], filled: str = "") -> str:
        """Memory of ours, from the end of the workspace, with a number in it."""
        name = _safe(q.name) if q.name not in (*self.tensors, *self.p.positional()) else f"{q.name}_"
        self.imports.add("blocks")
        size = " * ".join(sizes)
        before = " ".join(["len(workspace)", *(f"- 4 * {part}" for part in (*self.in_call, size))])
        self.scratch.append(" * ".join(f'shape["{s}"]' for s in sizes))
        self.in_call.append(size)
        self.lines.append(f"{name} = workspace[{before} :][: 4 * {size}].view(torch.float32)")
        if filled:
            self.lines.append(f"fill_kernel(grid=blocks({size}, 256), block=256)({name}, {filled}, {size})")
        return name

    def _tensor(self, q: Parameter, name: str) -> str:
        t = self.tensors[name]
        if t.dtype == "int" and q.type in ("int", "unsigned"):
            before = " + ".join(f"4 * {n}.numel()" for n in self.needs_int)
            self.needs_int.append(name)
            self.imports.add("as_int32")
            return f"as_int32({name}, workspace{', ' + before if before else ''})"
        if self.turned and name == "weight":
            return "turned"
        if name == "grads" and self.scales:
            return "scaled"
        if name in self.moves():
            return f"zeroed({name}_)" if name in self.begins_at_zero(q) else f"{name}_"
        if name in self.zeroes:
            self.imports.add("zeroed")
            return f"zeroed({name})"
        if t.accumulates and self.adds:
            self.imports.add("zeroed")
            return f"{name} if accumulate else zeroed({name})"
        if t.many:
            return f"None if {name} is None else {name}[i]" if t.when is not contract.always else f"{name}[i]"
        return name

    # --- geometry ---

    def _geometry(self) -> dict:
        launcher, signature = self.launcher, self.signature
        template: dict[str, str] = {}
        if launcher is None:
            main = self.main()
            work = f"{self.loop}[i].numel()" if self.loop else f"{main}.numel()"
            self.imports.add("blocks")
            self.lines.append(f"block = {BLOCK}  # {DECIDE}: threads of a block; the source has no launch of it")
            self.lines.append(f"grid = blocks({work}, block)  # {DECIDE}: how many blocks")
            grid, block, shared = "grid", "block", ""
        else:
            self._define(launcher)
            grid = self._python(launcher.grid) or self._undecided("grid", launcher.grid, "1")
            said = next((v for n, _, v in (line.partition(" = ") for line in self.lines) if n == grid), grid)
            doubtful = {name for name, sizes in self._own_sizes().items() if len(sizes) > 1 and self._number(name)}
            fixed = re.fullmatch(r"[\d\s(),+*/%-]+", said) or doubtful & self._grid_words()
            if launcher.name == "main" and fixed and "gridDim" not in self._body_words():
                self.lines.append(f"blocks_ = {grid}  # {DECIDE}: as many as its main has for sizes of its own")
                grid = "blocks_"
            block = self._python(launcher.block) or self._undecided("block", launcher.block, str(BLOCK))
            shared = ""
            if launcher.shared:
                shared = self._python(launcher.shared) or self._undecided("shared", launcher.shared, "0")
            for name, tokens in zip(signature.template, launcher.template, strict=False):
                if name in signature.types:
                    written = canonical([t.text for t in tokens])
                    if not any(q.pointer and q.type == name for q in signature.parameters):
                        template[name] = f'"{written}"'
                else:
                    template[name] = self._python(tokens) or self._undecided(name, tokens, "1")
        if "<" not in self.entry:
            given = {q.type for q in signature.parameters if q.pointer}
            for name in signature.template:
                if name not in template and name not in given and name not in dict(signature.defaults):
                    self.lines.append(f"{_safe(name)} = 1  # {DECIDE}: the template's {name}")
                    template[name] = _safe(name)
        return {"grid": grid, "block": block, "shared": shared, "template": template}

    def _undecided(self, name: str, tokens: list[Token], default: str) -> str:
        written = " ".join(t.text for t in tokens)
        self.lines.append(f"{_safe(name)} = {default}  # {DECIDE}: {written}")
        return _safe(name)

    def _define(self, launcher: Launcher) -> None:
        """Python of the launcher's definitions that its launch needs, in their order."""
        last = {name: i for i, (name, _) in enumerate(launcher.defined)}
        needed = {t.text for part in (launcher.grid, launcher.block, launcher.shared, *launcher.template,
                                      *launcher.arguments) for t in part}  # fmt: skip
        pointers = {
            part[0].text
            for part, q in zip(launcher.arguments, self.signature.parameters, strict=False)
            if q.pointer and part
        }
        needed -= pointers
        for name, tokens in reversed(launcher.defined):
            if name in needed:
                needed |= {t.text for t in tokens}
        for i, (name, tokens) in enumerate(launcher.defined):
            begins = any(n == name and name in [t.text for t in later] for n, later in launcher.defined[i + 1 :])
            if name not in needed or (i != last[name] and not begins):
                continue
            before, earlier = len(self.lines), dict(self.known)
            value = self._python(tokens)
            direct = [name] in [[t.text for t in part] for part in launcher.arguments]
            if direct and any(DECIDE in line for line in self.lines[before:]) and (size := self.scalar(name)):
                del self.lines[before:]
                self.known, value = earlier, size
            number = _is_number(tokens)  # a main says with how many rows it tries it
            given = launcher.name == "main" or direct
            if number and given and (size := self.scalar(name)):
                value = size
            if value is None:
                known = self.scalar(name)
                if known is None and name not in _texts(launcher.grid, launcher.block, launcher.shared):
                    continue
                value = known or f"1  # {DECIDE}: {' '.join(t.text for t in tokens)}"
            local = self._local(name) if value != _safe(name) else _safe(name)
            if value != local:
                self.lines.append(f"{local} = {value}")
            self.known[name] = local

    def _local(self, name: str) -> str:
        """A variable of the variant's for one of the launcher's, not that of a size or a tensor of the contract."""
        sizes = {s for t in self.tensors.values() for s in t.shape.split()}
        taken = {*sizes, *self.tensors, *self.p.positional(), *IMPORTED}
        return f"{name}_" if name in taken else _safe(name)

    def _python(self, tokens: Sequence[Token]) -> str | None:
        """A C++ expression of sizes as Python; None where a name in it is not known."""
        return Expression(self, tokens).text()

    def name_value(self, name: str) -> str | None:
        """What a name of the launcher stands for, a line of its own where that is a guess."""
        if name in self.known:
            return self.known[name]
        value = self.scalar(name) or self._as_parameter(name)
        if value is None and self.launcher and name in self.launcher.bound and name not in self.asking:
            self.asking.add(name)  # a caller's own parameter may go by the same name
            value = Expression(self, self.launcher.bound[name]).text()
            self.asking.remove(name)
        if value is None and self.launcher and name in self.launcher.parameters:
            side = 1 if "block" not in name.lower() else 16 if "sqrt" in name.lower() else BLOCK
            self.lines.append(f"{_safe(name)} = {side}  # {DECIDE}: {self.launcher.name} is told it")
            value = _safe(name)
        if value is None and (macro := self.unit.macros.get(name)) and macro.parameters is None:
            value = Expression(self, macro.body).text()
        if value is None:
            value = self._constant(name)
        if value is not None:
            self.known[name] = value
        return value

    def _as_parameter(self, name: str) -> str | None:
        """A size that the launcher has under a name of its own, and the kernel under one that is known."""
        sizes = self._own_sizes().get(name, set())
        return next(iter(sizes)) if len(sizes) == 1 else None

    def _own_sizes(self) -> dict[str, set[str]]:
        """What each name that the launch gives for a size stands for; several, where the kernel has several for it."""
        found: dict[str, set[str]] = {}
        given = self.launcher.arguments if self.launcher else []
        for part, q in zip(given, self.signature.parameters, strict=False):
            if len(part) == 1 and part[0].kind == "word" and self._is_size(q) and (size := self.scalar(q.name)):
                found.setdefault(part[0].text, set()).add(size)
        return found

    @staticmethod
    def _is_size(q: Parameter) -> bool:
        plain = plain_name(q.name)
        return not q.pointer and q.type in WHOLE and (plain in ROWS | COLUMNS | ALL or plain in MATMUL)

    def member(self, said: str, field: str) -> str | None:
        """Python of `p.field` of a struct that the kernel is given, or of the launcher's own that goes by its name."""
        for struct, fields in self.read.structs.items():
            if field in fields and (len(self.read.structs) == 1 or plain_name(said) == plain_name(struct)):
                return None if fields[field].pointer else self.scalar(fields[field].name)
        return None

    def first(self) -> str:
        """A tensor that is there in every call."""
        name = next(t.name for t in (*self.p.outputs, *self.p.inputs) if t.when is contract.always)
        return f"{name}[0]" if self.tensors[name].many else name

    def size_of(self, said: str, axis: list[str]) -> str | None:
        """`tensor.size(axis)` of the launcher: of what the layer is about, where it has as many axes there, or two."""
        launcher = self.launcher
        given = zip(launcher.arguments, self.signature.parameters, strict=False) if launcher else ()
        names = [self.matched.get(q.name, "") for part, q in given if said in [t.text for t in part]]
        shape = self.tensors[names[0]].shape.split() if names and names[0] else []
        if not launcher or not shape or self.tensors[names[0]].parameter or not "".join(axis).isdigit():
            return None
        texts = [[t.text for t in value] for _, value in launcher.defined]
        asked = [
            int(v[k + 4])
            for v in texts
            for k in range(len(v) - 4)
            if v[k : k + 4] == [said, ".", "size", "("] and v[k + 4].isdigit()
        ]
        axes, at = 1 + max(asked, default=0), int(axis[0])
        if len(shape) == 4 and axes == 4 and names[0] in self.moves():
            return (["B", "NH", "T", "HS"] if self.guess.heads else shape)[at]
        if not all(s.isidentifier() for s in shape) or len(shape) > 3 or axes not in (len(shape), 2):
            return None
        if axes == len(shape):
            return shape[at]
        return " * ".join(shape[:-1]) if at == 0 else shape[-1]

    def compiled(self, expression: str) -> str | None:
        """A constant of C++ that has a scope in front (x128::size): the compiler is asked."""
        if not self.source.suffix.startswith(".cu"):
            return None
        try:
            value = value_of(self.source, expression)
        except (CompileError, Unavailable, ValueError):
            return None
        return str(value)

    def _constant(self, name: str) -> str | None:
        """Of a constant that the file defines; what can be changed is none."""
        for d in self.unit.declarations:
            texts = [t.text for t in d.tokens]
            fixed = {"const", "constexpr"} & set(texts)
            if d.kind == "variable" and fixed and name in texts and "=" in texts and texts[-1] == ";":
                for part in cplusplus.split_commas(d.tokens[:-1]):
                    said = [t.text for t in part]
                    if "=" in said and said[said.index("=") - 1] == name and name not in said[said.index("=") :]:
                        return Expression(self, part[said.index("=") + 1 :]).text()
                return None
        return None


def _safe(name: str) -> str:
    name = re.sub(r"\W", "_", name)
    taken = name in ("i", "launch", *IMPORTED) or keyword.iskeyword(name) or not name[:1].isalpha()
    return f"{name}_" if taken else name


def _is_number(tokens: Sequence[Token]) -> bool:
    """Whether an expression is made of numbers alone: 1 << 20."""
    return any(t.kind == "number" for t in tokens) and all(t.kind in ("number", "sign") for t in tokens)


def _texts(*parts: Sequence[Token]) -> set[str]:
    return {t.text for part in parts for t in part}
