"""What the sizes, scalars and constants of a kernel and of its launcher are in Python, of a contract's shapes."""

import re
from collections.abc import Sequence

from bench.adopt.expression import Expression
from bench.adopt.matching import Matching
from bench.adopt.names import ALL, BATCHES, COLUMNS, GEMV, HEADS, MATMUL, MEANT, ROWS, others, plain_name, words
from bench.adopt.variant import BLOCK, DECIDE, IMPORTED, WHOLE, safe
from kernels import Unavailable
from kernels.cuda import cplusplus
from kernels.cuda.compiler import CompileError, value_of
from kernels.cuda.cplusplus import Token
from kernels.cuda.signature import Parameter
from reference import contract

SCALES = words(
    "scale softmax_scale sm_scale smscale attn_scale attn_scaling scaling scale_factor softmaxscale inv_sqrt_d"
)
STRIDE = re.compile(r"(\w+?)_(?:row_)?stride(?:_row|_r|_0)?")  # from one row to the next


class Sizes(Matching):
    """… with what its sizes and scalars are."""

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

    @staticmethod
    def _is_size(q: Parameter) -> bool:
        plain = plain_name(q.name)
        return not q.pointer and q.type in WHOLE and (plain in ROWS | COLUMNS | ALL or plain in MATMUL)

    def _own_sizes(self) -> dict[str, set[str]]:
        """What each name that the launch gives for a size stands for; several, where the kernel has several for it."""
        found: dict[str, set[str]] = {}
        given = self.launcher.arguments if self.launcher else []
        for part, q in zip(given, self.signature.parameters, strict=False):
            if len(part) == 1 and part[0].kind == "word" and self._is_size(q) and (size := self.scalar(q.name)):
                found.setdefault(part[0].text, set()).add(size)
        return found

    def _as_parameter(self, name: str) -> str | None:
        """A size that the launcher has under a name of its own, and the kernel under one that is known."""
        sizes = self._own_sizes().get(name, set())
        return next(iter(sizes)) if len(sizes) == 1 else None

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
            self.lines.append(f"{safe(name)} = {side}  # {DECIDE}: {self.launcher.name} is told it")
            value = safe(name)
        if value is None and (macro := self.unit.macros.get(name)) and macro.parameters is None:
            value = Expression(self, macro.body).text()
        if value is None:
            value = self._constant(name)
        if value is not None:
            self.known[name] = value
        return value

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

    def _body_words(self) -> list[str]:
        own = {q.name for q in self.signature.parameters} | set(self.signature.template)
        bodies = [d for d in self.unit.kernels(self.signature.name) if d.function]
        return [w for d in bodies[:1] for w in sorted(d.words) if w not in own]

    def _local(self, name: str) -> str:
        """A variable of the variant's for one of the launcher's, not that of a size or a tensor of the contract."""
        sizes = {s for t in self.tensors.values() for s in t.shape.split()}
        taken = {*sizes, *self.tensors, *self.p.positional(), *IMPORTED}
        return f"{name}_" if name in taken else safe(name)

    def _python(self, tokens: Sequence[Token]) -> str | None:
        """A C++ expression of sizes as Python; None where a name in it is not known."""
        return Expression(self, tokens).text()
