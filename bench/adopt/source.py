"""A kernel's source, read: which kernel, what it wants defined, its parameters, and what its body does with each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import cli
from bench.adopt.structs import Structs, spread, spread_tokens, structs_of
from bench.adopt.uses import Use, uses_of
from bench.cli import CannotGoOn
from kernels import Unavailable
from kernels.cuda import DTYPE_OF, SCALARS, cplusplus
from kernels.cuda.compiler import CompileError, parameters_of
from kernels.cuda.signature import Signature

UP = 3  # folders up from a source in which what it includes may lie
# What nvcc's host compiler defines by itself, and NVRTC does not.
HOSTS = {
    "__FLT_MAX__": "3.402823466e+38f",
    "__FLT_MIN__": "1.175494351e-38f",
    "__FLT_EPSILON__": "1.192092896e-07f",
    "__DBL_MAX__": "1.7976931348623157e+308",
    "__INT_MAX__": "2147483647",
}
STANDARD = re.compile(
    r"(FLT|DBL|INT|UINT|LONG|CHAR|SHRT|CUDART|CUDA|M)_|INFINITY$|NAN$|NULL$|HUGE_VAL"
)  # of C and CUDA
CONDITION = re.compile(r"^[ \t]*#[ \t]*(?:ifdef|(?:el)?if[ \t]+defined)[ \t]*\(?[ \t]*(\w+)", re.M)


@dataclass(frozen=True)
class Read:
    """A kernel's parameters: as they are written; with what is in structs in their place, and what is never written to
    as const; what its body does with each pointer, where that is told."""

    written: Signature
    structs: Structs
    signature: Signature
    uses: Mapping[str, Use] = field(default_factory=dict)


def read_kernel(source: Path, unit: cplusplus.Unit, written: Signature) -> Read:
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


def wanted(source: Path, entry: str) -> dict[str, str]:
    """The one macro without which the source has no such kernel: it stands behind #ifdef."""
    for name in dict.fromkeys(CONDITION.findall(source.read_text(errors="replace"))):
        if cplusplus.read(source, {name: "1"}, [cplusplus.HERE]).kernels(entry.partition("<")[0].strip()):
            return {name: "1"}
    return {}


def undefined(unit: cplusplus.Unit, entry: str) -> list[str]:
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
