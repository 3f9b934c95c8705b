"""A kernel's pointers as the tensors of a layer's contract, and what kind of kernel they make it."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.adopt.launcher import Launcher
from bench.adopt.names import ALL, BATCHES, COLUMNS, GEMV, HEADS, PROBABILITIES, ROWS, others, plain_name, words
from bench.adopt.source import Read
from bench.adopt.structs import spread_arguments
from bench.adopt.uses import Use
from bench.adopt.variant import NO_GUESS, WHOLE, Guess, Whole, texts_of
from kernels.cuda.signature import Parameter, Signature
from reference import contract
from reference.contract import Pass

KEPT = words("mean rstd lse")  # for backward, which a kernel for inference leaves out


def _in_halves(p: Pass, signature: Signature, uses: Mapping[str, Use]) -> Pass:
    """With gate and up for what has both, where a kernel has two pointers that it reads and one that it writes."""
    pointers = [q for q in signature.parameters if q.pointer]
    reads = sum(q.const or (q.name in uses and uses[q.name].reads) for q in pointers)
    packed = [t for t in p.inputs if t.shape == "M 2*H"]
    if len(packed) != 1 or len(p.inputs) != 1 or not (reads == 2 or (len(pointers) == 3 and not reads)):
        return p
    return replace(p, inputs=(contract.Tensor("gate", "M H"), contract.Tensor("up", "M H")))


class Matching:
    """A kernel seen as a phase of a layer. `lacking`: how much of it is not known."""

    def __init__(
        self, source, unit, read: Read, phase: str, p: Pass, launcher, entry: str, name: str, defines=(),
        guess: Guess = NO_GUESS,
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

    def _written_to(self, name: str) -> bool:
        return self.tensors[name] in self.p.outputs

    def main(self) -> str:
        """The tensor whose rows and columns sizes are."""
        return max(
            (t for t in (*self.p.outputs, *self.p.inputs) if not t.many and t.shape and not t.parameter),
            key=lambda t: (len(t.shape.split()), t.dtype == "work"),
            default=contract.Tensor("", ""),
        ).name

    def says(self) -> set[str]:
        """Sizes of heads that the kernel's parameters or its launch name: B, NH, NKV, T, HS; BH for the first two."""
        names = {q.name for q in self.signature.parameters if not q.pointer}
        if self.launcher:
            parts = (self.launcher.grid, *(v for _, v in self.launcher.defined), *self.launcher.arguments)
            names |= texts_of(*parts) | {name for name, _ in self.launcher.defined}
            names |= set(self.launcher.parameters)
        plain = [re.sub(r"^(qkv|q)_(?=\w)", "", plain_name(n)) for n in names]
        told = {HEADS[n] for n in plain if n in HEADS} | {n for n in names if n in ("B", "NH", "NKV")}
        return told | ({"BH"} if BATCHES & {n.lower() for n in names} else set())

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

    @property
    def launched(self) -> bool:
        """Whether its source's own launch is known."""
        return self.launcher is not None

    def _grid_words(self) -> set[str]:
        """The names that its launch's grid is made of."""
        assert self.launcher
        words, defined = texts_of(self.launcher.grid), dict(self.launcher.defined)
        while more := {t.text for w in words if w in defined for t in defined[w]} - words:
            words |= more
        return words

    def _grid_rows(self) -> set[str]:
        """Names of rows, other than the sizes that the kernel is told, that its launch's grid comes from."""
        told = (*self.sizes_told(), *ALL)
        return {w for w in self._grid_words() if w == "shape" or ((n := plain_name(w)) in ROWS and n not in told)}

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

    def moves(self) -> list[str]:
        """An attention's tensors that the kernel is given as such of their own, rather than slices of a packed one."""
        if not any(t.pack for t in self.p.inputs):
            return []
        every = [t for t in (*self.p.inputs, *self.p.outputs) if len(t.shape.split()) == 4]
        there = [t for t in every if t.name in self.matched.values()]
        return [t.name for t in there if t.pack or self.guess.heads]

    @property
    def adds(self) -> bool | None:
        """Whether it adds to all that accumulates, or to nothing of that; None where its body does not say."""
        uses = [self.uses.get(q) for q, name in self.matched.items() if self.tensors[name].accumulates]
        told = {use.reads and use.writes for use in uses if use}
        return told.pop() if len(told) == 1 and all(uses) else None

    def begins_at_zero(self, q: Parameter) -> set[str]:
        """Outputs in memory of ours that the kernel reads, too."""
        written = {t.name for t in self.p.outputs}
        if q.name in self.uses and self._in_place(q) and self.matched[q.name] in written:
            self.imports.add("zeroed")
            return {self.matched[q.name]}
        return set()
