"""Whether a C++ function is called with what it takes: C takes anything, and reads rubbish for what is missing.

Its parameters are read from its source. What cannot be read there, a macro's or a struct, is let through.
"""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bench.trial.native import words
from kernels.cpu import DTYPE_FLAGS, Kernel
from kernels.cuda import cplusplus
from kernels.cuda.cplusplus import Token

WHOLE = words("bool char short int long signed unsigned size_t ssize_t ptrdiff_t intptr_t uintptr_t") | {
    f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
SILENT = words("const volatile restrict __restrict __restrict__ register std :: struct")
POINTER, INTEGER, FLOAT, DOUBLE, UNKNOWN = "a pointer", "a whole number", "a float", "a double", ""


class Parameter(NamedTuple):
    written: str  # as the source has it, its name with it
    name: str
    kind: str


def hold() -> None:
    """Have the first call of each C++ function in this process compared with its source. Before a variant is loaded."""
    Kernel._load = _load  # type: ignore[method-assign, assignment]


LOAD = Kernel._load


def _load(kernel: Kernel, dtype: torch.dtype) -> Callable:
    function = LOAD(kernel, dtype)
    parameters = parameters_of(kernel.source, kernel.entry, DTYPE_FLAGS[dtype])
    if parameters is None:
        return function

    def first(*arguments: object) -> None:
        if wrong := mismatch(parameters, arguments):
            raise TypeError(f"{kernel.source.name}: {kernel.entry} {wrong}")
        kernel._functions[dtype] = function  # calls that follow cost nothing more
        function(*arguments)

    return first


def parameters_of(source: Path, entry: str, flag: str) -> list[Parameter] | None:
    """Of the function in a source that is compiled with `flag`, `-DNAME`. None where there is none, or several that
    differ."""
    unit = cplusplus.read(source, {flag.removeprefix("-D"): "1"})
    heads = [d.function for d in unit.declarations if d.function and d.function.name == entry]
    lists = [[_parameter(tokens) for tokens in head.parameters] for head in heads]
    kinds = {tuple(p.kind for p in found) for found in lists}
    return lists[-1] if len(kinds) == 1 else None


def _parameter(tokens: Sequence[Token]) -> Parameter:
    texts = [t.text for t in tokens]
    texts = texts[: texts.index("=")] if "=" in texts else texts
    written = " ".join(texts).replace(" *", "*").replace(" [ ", "[")
    rest = [t for t in texts if t not in SILENT]
    name = rest[-1] if len(rest) > 1 and rest[-1].isidentifier() and rest[-1] not in WHOLE else ""
    types = rest[:-1] if name else rest
    if {"(", "&", "<"} & {*rest}:
        kind = UNKNOWN
    elif {"*", "["} & {*rest}:
        kind, name = POINTER, name or next((w for w in reversed(rest) if w.isidentifier()), "")
    elif types and {*types} <= WHOLE:
        kind = INTEGER
    else:
        kind = {"float": FLOAT, "double": DOUBLE}.get(" ".join(types), UNKNOWN)
    return Parameter(written, name, kind)


def mismatch(parameters: Sequence[Parameter], arguments: Sequence[object]) -> str:
    """What is wrong with arguments, as ctypes is given them; "" where nothing is."""
    takes, given = len(parameters), len(arguments)
    if takes != given:
        takes_what = f"takes {takes} ({', '.join(p.written for p in parameters)})" if takes else "takes nothing"
        first = f": `{parameters[given].name}` is missing" if given < takes else f": {given - takes} too many"
        return f"is called with {given} arguments and {takes_what}{first}"
    for number, (parameter, argument) in enumerate(zip(parameters, arguments, strict=True), 1):
        kind, said = _given(argument)
        if parameter.kind not in (UNKNOWN, kind):
            way = "; floats arrive as float" if (parameter.kind, kind) == (DOUBLE, FLOAT) else ""
            return f"takes `{parameter.written}`, {parameter.kind}, and argument {number} is {said}{way}"
    return ""


def _given(argument: object) -> tuple[str, str]:
    """What kind of parameter an argument is for, and what the variant gave."""
    if argument is None:
        return POINTER, "None"
    for kind, of, said in GIVEN:
        if isinstance(argument, of):
            return kind, said
    return UNKNOWN, "something else"


GIVEN: tuple[tuple[str, type, str], ...] = (
    (POINTER, ctypes.c_void_p, "a tensor"),
    (POINTER, ctypes.Array, "a list"),
    (INTEGER, ctypes.c_int64, "a whole number"),
    (FLOAT, ctypes.c_float, "a float"),
)
