"""Structs that a kernel is given by value, as the pointers and numbers in them, each a parameter of its own.

Of one struct they are called what its fields are; of matrices, as a programming guide passes them, each a struct with
one pointer, the pointer is called what the matrix is, and its sizes `widthA`, `heightA`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.adopt.names import words
from kernels.cuda import DTYPE_OF, SCALARS, cplusplus
from kernels.cuda.cplusplus import Token
from kernels.cuda.signature import Parameter, Signature, canonical

SIDES = dict.fromkeys(words("w width cols n_cols num_cols columns stride ld pitch"), "width")
SIDES |= dict.fromkeys(words("h height rows n_rows num_rows"), "height")

Structs = Mapping[str, Mapping[str, Parameter]]  # by parameter, by field: what it becomes


def structs_of(unit: cplusplus.Unit, signature: Signature) -> Structs:
    """The parameters that are structs of pointers and numbers alone; {} where one is anything else."""
    known = (*DTYPE_OF, *SCALARS, *signature.types)
    found = {
        q.name: fields
        for q in signature.parameters
        if not q.pointer and not q.many and q.type not in known and (fields := _fields(unit, q.type))
    }
    several = len(found) > 1
    taken = {q.name for q in signature.parameters}
    made = {}
    for struct, fields in found.items():
        matrix = several and sum(f.pointer for f in fields) == 1
        named = {f.name: _named(struct, f, matrix, several or f.name in taken) for f in fields}
        made[struct] = {f.name: replace(f, name=named[f.name]) for f in fields}
    return made


def _named(struct: str, field: Parameter, matrix: bool, clashes: bool) -> str:
    if matrix:
        return struct if field.pointer else f"{SIDES.get(field.name.lower(), field.name + '_')}{struct}"
    return f"{struct}_{field.name}" if clashes else field.name


def _fields(unit: cplusplus.Unit, kind: str) -> list[Parameter]:
    """The fields of a struct, in order; [] where it has arrays, others in it, or what cannot be read."""
    kind = kind.rpartition("::")[2]
    for d in unit.declarations:
        texts = [t.text for t in d.tokens]
        if d.kind != "type" or kind not in d.names or "{" not in texts or texts[0] == "template":
            continue
        opens = texts.index("{")
        if "struct" not in texts[:opens] or ":" in texts[:opens]:
            return []
        made: list[Parameter] = []
        for member in _members(d.tokens[opens + 1 : cplusplus.closing(d.tokens, opens)]):
            fields = list(_declared(member))
            if not fields:
                return []
            made += fields
        return made
    return []


def _members(tokens: Sequence[Token]) -> list[list[Token]]:
    """The declarations of data in a struct's body, functions left out."""
    found: list[list[Token]] = []
    member: list[Token] = []
    i = 0
    while i < len(tokens):
        if tokens[i].text == "{" and any(t.text == "(" for t in member):  # a function
            i, member = cplusplus.closing(tokens, i), []
        elif tokens[i].text == ";":
            if member and not any(t.text == "(" for t in member):
                found.append(member)
            member = []
        else:
            member.append(tokens[i])
        i += 1
    return found


def _declared(member: Sequence[Token]) -> list[Parameter]:
    """The fields of `const float *a, *b;`; [] of what is no pointer or number."""
    texts = [t.text for t in member]
    if {"[", "<", ":", "&", "{", "static"} & set(texts):
        return []
    parts = [
        p[: [t.text for t in p].index("=")] if "=" in [t.text for t in p] else p for p in cplusplus.split_commas(member)
    ]
    base = [t.text for t in parts[0][:-1] if t.text != "*" and t.text not in ("__restrict__", "__restrict", "struct")]
    const, kind = "const" in base, canonical([t for t in base if t != "const"])
    if kind not in (*DTYPE_OF, *SCALARS):
        return []
    made = []
    for part in parts:
        stars = [t.text for t in part].count("*")
        if stars > 1 or part[-1].kind != "word":
            return []
        made.append(Parameter(part[-1].text, kind, pointer=stars == 1, const=const and stars == 1))
    return made


def spread(signature: Signature, structs: Structs) -> Signature:
    """The signature with what is in its structs."""
    every = [f for q in signature.parameters for f in (structs[q.name].values() if q.name in structs else [q])]
    return replace(signature, parameters=tuple(every))


def spread_tokens(body: Sequence[Token], structs: Structs) -> list[Token]:
    """A body in which `p.field` is what the field becomes."""
    out: list[Token] = []
    i = 0
    while i < len(body):
        after = [t.text for t in body[i + 1 : i + 3]]
        fields = structs.get(body[i].text, {}) if not out or out[-1].text not in (".", "->") else {}
        if after[:1] == ["."] and after[1:] and after[1] in fields:
            out.append(body[i]._replace(text=fields[after[1]].name))
            i += 3
        else:
            out.append(body[i])
            i += 1
    return out


def spread_arguments(given: Sequence[Sequence[Token]], signature: Signature, structs: Structs) -> list[list[Token]]:
    """A launch's arguments, `p.field` for each field of a struct. signature: as it is written."""
    out: list[list[Token]] = []
    for part, q in zip(given, signature.parameters, strict=False):
        dot = Token("sign", ".", 0, 0)
        fields = structs.get(q.name, {})
        out += [[*part, dot, Token("word", name, 0, 0)] for name in fields] if q.name in structs else [list(part)]
    return out


def together(arguments: Sequence[str], signature: Signature, structs: Structs) -> list[str]:
    """Python of the arguments, those of a struct as a tuple. signature: as it is written."""
    left = list(arguments)
    out = []
    for q in signature.parameters:
        count = len(structs.get(q.name, ())) or 1
        taken, left = left[:count], left[count:]
        out.append(f"({', '.join(taken)},)" if q.name in structs else taken[0])
    return out
