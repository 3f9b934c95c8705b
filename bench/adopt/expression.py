"""C++ of a launch as Python of a variant."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from bench.adopt.launcher import Launcher, template_end
from bench.adopt.names import words
from kernels.cuda import cplusplus
from kernels.cuda.cplusplus import Token
from kernels.cuda.signature import canonical
from reference.contract import Tensor

ROUND_UP = words("ceil_div ceildiv CEIL_DIV cdiv div_ceil DIVUP CEILDIV divUp iDivUp div_up divup")
LOG2 = words("log2_ceil log2Ceil ceil_log2 ilog2_ceil")
UP_TO_POWER = words("next_pow2 nextPow2 next_power_of_two next_power_of_2 nextPowerOfTwo")
SIZES = {"float": 4, "double": 8, "int": 4, "half": 2, "__half": 2, "__nv_bfloat16": 2, "nv_bfloat16": 2, "float4": 16}


class Known(Protocol):
    """What the writer of a variant knows of the names in its launch."""

    imports: set[str]  # of kernels.cuda, that the variant needs
    launcher: Launcher | None
    tensors: dict[str, Tensor]
    unit: cplusplus.Unit

    def first(self) -> str:
        """A tensor that is there in every call."""
        ...

    def name_value(self, name: str) -> str | None:
        """Python of a name; None where it is not known."""
        ...

    def size_of(self, said: str, axis: list[str]) -> str | None:
        """Python of the size of a tensor's axis."""
        ...

    def member(self, said: str, field: str) -> str | None:
        """Python of a field of a struct that the kernel is given."""
        ...

    def compiled(self, text: str) -> str | None:
        """What the compiler says that a constant is."""
        ...


class Expression:
    """C++ of sizes as Python: products, sums, whole divisions, ceil_div, dim3, sizeof."""

    def __init__(self, writer: Known, tokens: Sequence[Token]):
        self.writer, self.tokens = writer, list(tokens)

    def text(self) -> str | None:
        out = self._of(self.tokens)
        if not out:
            return None
        while (plain := re.sub(r"(?<![\w)\]])\((\w+)\)", r"\1", out)) != out:  # (K), of a macro
            out = plain
        try:
            ast.parse(out, mode="eval")
        except SyntaxError:
            return None
        return out

    def _of(self, tokens: list[Token]) -> str | None:
        out, i = "", 0
        if (choice := self._choice(tokens)) is not None:
            return choice
        real = any(
            t.text in ("float", "double")
            and [x.text for x in tokens[max(0, k - 2) : k]][-1:] == ["("]
            and tokens[max(0, k - 2)].text != "sizeof"
            for k, t in enumerate(tokens)
        )
        real |= any(
            t.kind == "number" and re.search(r"\.|\d[eE]|f$", t.text) and not t.text.startswith("0x") for t in tokens
        )
        while i < len(tokens):
            token = tokens[i]
            if token.kind == "word":
                text, i = self._word(tokens, i)
                if text is None:
                    return None
                out += text
                continue
            if token.kind == "number":
                out += re.sub(r"(?i)(?<=[\d.])(?:f|u|l|ul|ll|ull|z)$", "", token.text)
            elif token.text == "(" and (skip := self._cast(tokens, i)):
                i = skip
                continue
            elif token.text == "(" and (chosen := self._choice(tokens[i + 1 : cplusplus.closing(tokens, i)])):
                out += chosen
                i = cplusplus.closing(tokens, i) + 1
                continue
            elif token.text == ">" and i + 1 < len(tokens) and tokens[i + 1].text == ">":
                out += " >> "
                i += 2
                continue
            elif token.text in ("+", "-", "*", "(", ")", ",", "%", "<<", ">=", "<=", "==", "!=", "<", ">"):
                out += {",": ", ", "(": "(", ")": ")"}.get(token.text, f" {token.text} ")
            elif token.text == "/":
                out += " / " if real else " // "
            elif token.text == "::":
                pass
            else:
                return None
            i += 1
        return re.sub(r"\( -", "(-", out.strip())

    def _called(self, name: str, arguments: list[Token]) -> str | None:
        """A function of the host's that only returns an expression of what it is given."""
        given = cplusplus.split_commas(arguments)
        macro = self.writer.unit.macros.get(name)
        if macro and macro.parameters is not None and len(macro.parameters) == len(given):
            return self._of(_put_in(macro.body, dict(zip(macro.parameters, given, strict=True))))
        for d in self.writer.unit.declarations:
            function = d.function
            if not function or function.name != name or len(function.parameters) != len(given):
                continue
            texts = [t.text for t in d.tokens]
            opens = texts.index("{") if "{" in texts else len(texts)
            if texts[opens : opens + 2] != ["{", "return"] or texts.count(";") != 1:
                continue
            body = d.tokens[opens + 2 : texts.index(";")]
            named = {p[-1].text: v for p, v in zip(function.parameters, given, strict=True) if p}
            return self._of(_put_in(body, named))
        return None

    def _member(self, name: str, member: str) -> str | None:
        """`block.x` of a dim3 that the launcher defines."""
        launcher = self.writer.launcher
        made = dict(launcher.defined).get(name, []) if launcher else []
        if [t.text for t in made[:2]] != ["dim3", "("]:
            return None
        parts = cplusplus.split_commas(made[2 : cplusplus.closing(made, 1)])
        at = "xyz".index(member)
        text = self._of(parts[at]) if at < len(parts) else "1"
        return text if text is None or text.isidentifier() or text.isdigit() else f"({text})"

    def _choice(self, tokens: list[Token]) -> str | None:
        """`condition ? one : other`; None of what is none, or cannot be told."""
        texts, depth, at = [t.text for t in tokens], 0, dict[str, int]()
        for i, text in enumerate(texts):
            depth += (text in ("(", "[")) - (text in (")", "]"))
            if not depth and text in ("?", ":") and text not in at:
                at[text] = i
        if len(at) < 2:
            return None
        parts = [tokens[: at["?"]], tokens[at["?"] + 1 : at[":"]], tokens[at[":"] + 1 :]]
        told = [self._of(part) for part in parts]
        return f"({told[1]} if {told[0]} else {told[2]})" if all(told) else None

    def _of_device(self, text: str) -> str | None:
        """What a launcher asks of the GPU."""
        if re.fullmatch(r"maxThreadsPerMultiProcessor|(\w+_)?threads_per_sm", text, re.I):
            return "2048"
        if text == "maxThreadsPerBlock":
            return "1024"
        if not re.fullmatch(
            r"multiProcessorCount|(\w+_)?num_sms?|(\w+_)?sm_count|(\w+_)?num_multiprocessors", text, re.I
        ):
            return None
        self.writer.imports.add("multiprocessors")
        return f"multiprocessors({self.writer.first()})"

    @staticmethod
    def _cast(tokens: list[Token], i: int) -> int | None:
        """Behind `(float)`."""
        close = cplusplus.closing(tokens, i)
        inside = [t.text for t in tokens[i + 1 : close]]
        kinds = {"float", "double", "int", "size_t", "unsigned", "long", "uint", "uint32_t", "int64_t"}
        return close + 1 if inside and set(inside) <= kinds and close + 1 < len(tokens) else None

    def _word(self, tokens: list[Token], i: int) -> tuple[str | None, int]:
        text = tokens[i].text
        following = tokens[i + 1].text if i + 1 < len(tokens) else ""
        if text == "std":
            return "", i + 2
        if text in ("true", "false"):
            return text.capitalize(), i + 1
        if following in (".", "->") and [t.text for t in tokens[i + 2 : i + 4]] == ["size", "("]:
            close = cplusplus.closing(tokens, i + 3)
            return self.writer.size_of(text, [t.text for t in tokens[i + 4 : close]]), close + 1
        if following == "." and i + 2 < len(tokens) and tokens[i + 2].text in ("x", "y", "z"):
            return self._member(text, tokens[i + 2].text), i + 3
        if [t.text for t in tokens[i + 1 : i + 4]] == [".", "maxGridSize", "["]:
            return "2147483647", cplusplus.closing(tokens, i + 3) + 1
        if following in (".", "->") and i + 2 < len(tokens) and (told := self.writer.member(text, tokens[i + 2].text)):
            return told, i + 3
        if following in (".", "->") and i + 2 < len(tokens):  # of cudaDeviceProp
            return self._of_device(tokens[i + 2].text), i + 3
        if (counted := self._of_device(text)) and following != "(":
            return counted, i + 1
        if following == "::":
            end = i
            while end + 2 < len(tokens) and tokens[end + 1].text == "::":
                end += 2
            return self.writer.compiled("".join(t.text for t in tokens[i : end + 1])), end + 1
        if text in ("static_cast",):
            close = next((j for j in range(i, len(tokens)) if tokens[j].text == ">"), i)
            return "", close + 1
        if text == "sizeof":
            close = cplusplus.closing(tokens, i + 1)
            kind = canonical([t.text for t in tokens[i + 2 : close]])
            size = SIZES.get(kind)
            work = next((n for n, t in self.writer.tensors.items() if t.dtype == "work" and not t.many), None)
            return (str(size) if size else f"{work}.element_size()" if work else None), close + 1
        if text in ("min", "max") and following == "<" and (closes := template_end(tokens, i + 1)):
            told, length = self._word([tokens[i], *tokens[closes + 1 :]], 0)
            return told, closes + length
        if following == "(":
            close = cplusplus.closing(tokens, i + 1)
            inside = self._of(tokens[i + 2 : close])
            if inside is None and text not in (
                *ROUND_UP,
                *LOG2,
                *UP_TO_POWER,
                "dim3",
                "min",
                "max",
                "sqrt",
                "sqrtf",
                "ceil",
            ):
                return self._called(text, tokens[i + 2 : close]), close + 1
            if inside is None:
                return None, i
            if text in ROUND_UP:
                self.writer.imports.add("blocks")
                return f"blocks({inside})", close + 1
            if text in LOG2:
                return f"({inside} - 1).bit_length()", close + 1
            if text in UP_TO_POWER:
                return f"(1 << ({inside} - 1).bit_length())", close + 1
            if text == "dim3":
                return (f"({inside})" if "," in inside else inside), close + 1
            if text in ("min", "max"):
                return f"{text}({inside})", close + 1
            if text in ("sqrt", "sqrtf"):
                return f"math.sqrt({inside})", close + 1
            if text == "ceil":
                return f"math.ceil({inside})", close + 1
            return self._called(text, tokens[i + 2 : close]), close + 1
        value = self.writer.name_value(text)
        if value is None:
            return None, i
        alone = value.isidentifier() or value.isdigit() or re.fullmatch(r"[\w.\[\]()]+", value)
        return (value if alone or len(tokens) == 1 else f"({value})"), i + 1


def _put_in(body: Sequence[Token], given: Mapping[str, Sequence[Token]]) -> list[Token]:
    """The tokens of a macro or a function with what it is given, in parentheses."""
    left, right = Token("sign", "(", 0, 0), Token("sign", ")", 0, 0)
    return [x for t in body for x in ([left, *given[t.text], right] if t.text in given else [t])]
