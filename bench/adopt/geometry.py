"""A kernel's launch in Python: its arguments, grid, block, shared memory, template; what nobody says is marked."""

import re
from collections.abc import Sequence

from bench.adopt.launcher import Launcher
from bench.adopt.names import plain_name, words
from bench.adopt.sizes import Sizes
from bench.adopt.variant import BLOCK, DECIDE, is_number, safe, texts_of
from kernels.cuda import cplusplus
from kernels.cuda.cplusplus import Token
from kernels.cuda.signature import Parameter, canonical
from reference import contract

STATE = {  # of an online softmax, a row each, and what it begins with
    **dict.fromkeys(words("m maxes row_max rowmax max_scores"), "-math.inf"),
    **dict.fromkeys(words("l sums row_sum rowsum sum_exp denominators"), "0.0"),
}


class Geometry(Sizes):
    """… and how it is launched."""

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
            self.lines.append(f"{safe(q.name)} = 0  # {DECIDE}: {q.type} {q.name}")
            return safe(q.name)
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
        name = safe(q.name) if q.name not in (*self.tensors, *self.p.positional()) else f"{q.name}_"
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
                doubt = f"  # {DECIDE}: as many as its main has for sizes of its own"
                if set_here := next((i for i, line in enumerate(self.lines) if line.startswith(f"{grid} = ")), None):
                    self.lines[set_here] = f"{self.lines[set_here].partition('  #')[0]}{doubt}"
                else:
                    self.lines.append(f"blocks_ = {grid}{doubt}")
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
                    self.lines.append(f"{safe(name)} = 1  # {DECIDE}: the template's {name}")
                    template[name] = safe(name)
        return {"grid": grid, "block": block, "shared": shared, "template": template}

    def _undecided(self, name: str, tokens: list[Token], default: str) -> str:
        written = " ".join(t.text for t in tokens)
        self.lines.append(f"{safe(name)} = {default}  # {DECIDE}: {written}")
        return safe(name)

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
            number = is_number(tokens)  # a main says with how many rows it tries it
            given = launcher.name == "main" or direct
            if number and given and (size := self.scalar(name)):
                value = size
            if value is None:
                known = self.scalar(name)
                if known is None and name not in texts_of(launcher.grid, launcher.block, launcher.shared):
                    continue
                value = known or f"1  # {DECIDE}: {' '.join(t.text for t in tokens)}"
            local = self._local(name) if value != safe(name) else safe(name)
            if value != local:
                self.lines.append(f"{local} = {value}")
            self.known[name] = local
