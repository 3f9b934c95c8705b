"""A variant file for a kernel that somebody wrote for something else: its parameters matched to a layer's contract.

What is known is filled in: tensors and sizes by name, geometry as the source's own launcher computes it, scalars that
the contract keeps in tensors as Loaded, int64 tokens as int32. What cannot be known is a line with DECIDE in it.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.adopt.geometry import Geometry
from bench.adopt.launcher import called_near, constants_near, launcher_in, launcher_near
from bench.adopt.names import HEADS, plain_name
from bench.adopt.ours import COPIED, FILLED, LEFT, LSE, MOVED, ROWS_LSE, SCALED, TURNED, TYPES
from bench.adopt.source import HOSTS, UP, chosen, read_kernel, undefined, wanted
from bench.adopt.structs import together
from bench.adopt.variant import DECIDE, NO_GUESS, Adopted, Guess, Whole
from bench.cli import CannotGoOn
from kernels.cuda import DTYPE_OF, cplusplus
from kernels.cuda.signature import read_signatures
from reference import contract

SCALING = (  # of a tensor's gradients
    "n = grads[i].numel()",
    "scaled = workspace[: 4 * n].view(grads[i].dtype)[:n]",
    "scale_kernel(grid=blocks(n, 256), block=256)(scaled, grads[i], Loaded(grad_scale), n)",
)
GONE = {  # from C++17, or what kernels have from headers of the host's, which are empty here
    "aligned_storage": "namespace std { template <unsigned long N, unsigned long A> struct aligned_storage"
    " { struct alignas(A) type { unsigned char held[N]; }; }; }",
    "unary_function": "namespace std { template <class A, class R> struct unary_function {}; }",
    "binary_function": "namespace std { template <class A, class B, class R> struct binary_function {}; }",
}


def adopted(
    source: Path,
    layer: str,
    kernel: str | None,
    name: str,
    published: Path | None = None,
    guess: Guess = NO_GUESS,
    whole: Whole | None = None,
    made: Callable[..., "Writer"] | None = None,
) -> Adopted:
    """The variant of a CUDA kernel.

    published: where the source lay, if that is a copy; its launch may be near. whole: other sizes are refused. made:
    what makes its writer, where a layer has one of its own.
    """
    unit = cplusplus.read(source, None, [cplusplus.HERE])
    entry = kernel or chosen(source, unit)
    defines = {} if unit.kernels(entry.partition("<")[0].strip()) else wanted(source, entry)
    said = {word for d in unit.declarations for word in d.words}
    defines |= {name: value for name, value in HOSTS.items() if name in said}
    unit = cplusplus.read(source, defines, [cplusplus.HERE]) if defines else unit
    if further := constants_near(published or source, undefined(unit, entry)):
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
        for read in [read_kernel(source, unit, signature) for signature in signatures]
        for phase in contract.phases_of(module)
    ]
    writer = min(choices, key=lambda w: w.lacking)
    writer.whole = whole
    return writer.written()


class Writer(Geometry):
    """… and written down as a variant."""

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
