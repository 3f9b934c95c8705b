"""Whose functions they are: what the harness, and what it stands on, are made of, and whether it still is that.

bind()          notes what is there now
sealed()()      names of all that is not what it was
"""

import _signal
import builtins
import collections
import contextlib
import dataclasses
import functools
import gc
import itertools
import math
import mmap
import multiprocessing.connection
import operator
import os
import posix
import random
import secrets
import signal
import statistics
import sys
import threading
import time
import types
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


@dataclass(frozen=True)
class Names:
    """A namespace and what was in it that matters, in parallel tuples, so that comparing them is quick."""

    of: str
    owner: object
    names: tuple[str, ...]
    things: tuple[object, ...]
    now: Callable[[Any], tuple[object, ...]]  # of the namespace: what is under those names. Raises KeyError
    known: frozenset[str]  # all names that were there


REPLACED: Callable[[], tuple[str, ...]] = tuple  # names of what is not what it was at `bind`
CALLABLE = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
CALLABLE += (types.MethodType, types.GetSetDescriptorType, type, property, staticmethod, classmethod)  # type: ignore[assignment]
# Whoever puts a list of its own class in the place of one is called when the harness looks into it.
HELD = (*CALLABLE, dict, list, set, itertools.count)


# Of Python's own library what the harness calls around a call: whoever replaces one of these is called after the clock
# stopped, and before anybody looks. With the classes of its own, of those that have some.
STANDARD = (
    time,
    os,
    posix,
    signal,
    _signal,
    threading,
    gc,
    zlib,
    builtins,
    math,
    operator,
    itertools,
    mmap,
    statistics,
)
WITH_CLASSES = (contextlib, functools, random, secrets, collections, dataclasses)


def bind() -> None:
    """Note which functions the harness, and what it stands on, are made of now. Whatever is replaced later shows."""
    global REPLACED
    owners: list[tuple[str, object]] = [(m.__name__, m) for m in (*STANDARD, *WITH_CLASSES, sys)]
    owners += [(f"{m.__name__}.{c.__qualname__}", c) for m in WITH_CLASSES for c in _classes(m)]
    owners += [("pathlib.Path", Path), ("torch", torch)]
    owners += [("Connection", multiprocessing.connection.Connection), ("torch.Tensor", torch.Tensor)]
    owners += [("torch.Tensor", torch._C.TensorBase)]
    for name, module in sorted(sys.modules.items()):
        if name == "bench" or name.startswith("bench."):
            owners += [(name, module), *((f"{name}.{c.__qualname__}", c) for c in _classes(module))]
    REPLACED = _comparer([names for names in itertools.starmap(_names, owners) if names.names])


def sealed() -> Callable[[], tuple[str, ...]]:
    """`REPLACED` as it is now. Whoever holds it where others cannot get at it, in a function that runs, asks what
    cannot be silenced: what `take` and `difference` say is worth as much as they are."""
    return REPLACED


def _classes(module: ModuleType) -> list[type]:
    return [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]


def _names(of: str, owner: object) -> Names:
    found = {n: v for n, v in vars(owner).items() if isinstance(v, HELD)}
    if of == "torch":  # its compiler replaces one, and what is private comes and goes
        found = {n: v for n, v in found.items() if n[0] != "_" and n != "manual_seed" and isinstance(v, CALLABLE)}
    if of == "sys":  # what shows errors is anybody's
        found = {n: v for n, v in found.items() if not n.endswith("hook")}
    if of == __name__:  # the one that is made here
        found.pop("REPLACED", None)
    names = tuple(found)
    # Of one name itemgetter would answer no tuple.
    now = operator.itemgetter(*names) if len(names) > 1 else lambda space: tuple(space[n] for n in names)
    return Names(of, owner, names, tuple(found.values()), now, frozenset(vars(owner)))


def _comparer(bound: list[Names]) -> Callable[[], tuple[str, ...]]:
    """What answers the names of all that is not what it was. It calls only what is bound here, and looks up nothing: a
    function that was replaced cannot be asked whether it was."""
    same, each, every, pair, sort, size = operator.is_, map, all, zip, type, len
    missing, modules, join = KeyError, sys.modules, tuple
    spaces = [(b, vars(b.owner), type(b.owner), len(b.known)) for b in bound]
    imported = [(b.of, b.owner) for b in bound if isinstance(b.owner, ModuleType) and b.of in sys.modules]
    functions = [(f"{b.of}.{n}", f) for b in bound for n, f in zip(b.names, b.things, strict=True)]
    cells = [(name, cell, held) for name, f in functions for cell, held in _cells(f)]
    hides = _hider()

    def replaced() -> tuple[str, ...]:
        found = []
        for names, space, kind, count in spaces:
            if sort(names.owner) is not kind:
                found.append(f"the class of {names.of}")
            if size(space) != count:
                found += [
                    f"{names.of}.{name}" for name in space if name not in names.known and hides(names.owner, name)
                ]
            try:
                if every(each(same, names.now(space), names.things)):  # == would ask whoever was put there
                    continue
            except missing:
                pass
            pairs = pair(names.names, names.things)
            found += [f"{names.of}.{name}" for name, thing in pairs if space.get(name) is not thing]
        found += [f"sys.modules[{name}]" for name, module in imported if modules.get(name) is not module]
        found += [f"what {name} closes over" for name, cell, held in cells if cell.cell_contents is not held]
        return join(found)

    return replaced


def _cells(function: object) -> list[tuple[types.CellType, object]]:
    """What a function closes over, and what is in it; a cell may still be empty."""
    found = []
    for cell in (function.__closure__ or ()) if isinstance(function, types.FunctionType) else ():
        with contextlib.suppress(ValueError):
            found.append((cell, cell.cell_contents))
    return found


def _hider() -> Callable[[object, str], bool]:
    look, has, are, kind, some, called = vars, hasattr, isinstance, type, any, callable
    module, of_python = ModuleType, builtins

    def hides(owner: object, name: str) -> bool:
        """Whether a new name hides what was found before: of a module a builtin; of a class an inherited one or, as a
        property does, one of its objects' own. Or whether Python itself looks for it, as for a destructor."""
        special = name[:2] == "__" == name[-2:]
        if are(owner, module):
            return has(of_python, name) and not special
        value = look(owner).get(name)
        if special:  # Python itself adds lists and dictionaries
            return called(value)
        return has(kind(value), "__set__") or some(has(base, name) for base in owner.__mro__[1:])  # type: ignore[attr-defined]

    return hides
