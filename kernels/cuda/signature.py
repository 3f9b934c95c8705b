"""The parameter list of a `__global__` function, read from its source: it is the contract of a launch."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Parameter:
    """One parameter: `type` without const, pointer and Many<…>; `many` where it is a list passed by value."""

    name: str
    type: str
    pointer: bool = False
    const: bool = False
    many: bool = False


@dataclass(frozen=True)
class Signature:
    """A kernel's template parameters, by name, and its parameters."""

    template: tuple[str, ...]
    parameters: tuple[Parameter, ...]


def read_signature(source: Path, entry: str) -> Signature:
    """The signature of `entry` in `source`. Raises LookupError where there is none, ValueError where it is odd."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source.read_text(), flags=re.S)
    # template <…> __global__ void __launch_bounds__(…) entry(…)
    pattern = r"(?:template\s*<(?P<template>[^;{}()]*)>\s*)?(?:extern\s+\"C\"\s+)?__global__\s+[^;{}]*?\b%s\s*\("
    match = re.search(pattern % re.escape(entry), text)
    if not match:
        raise LookupError(f"{source.name} has no __global__ function {entry}")
    template = [part.split("=")[0].split()[-1] for part in _split(match["template"] or "")]
    parameters = _split(text[match.end() : _closing(text, match.end())])
    return Signature(tuple(template), tuple(_parameter(source, entry, p) for p in parameters))


def _closing(text: str, start: int) -> int:
    """Where the bracket that is open at `start` closes."""
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError("a parameter list that does not end")


def _split(text: str) -> list[str]:
    """At commas outside of <…> and (…)."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "<(") - (char in ">)")
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [p.strip() for p in [*parts, current] if p.strip()]


def _parameter(source: Path, entry: str, text: str) -> Parameter:
    words = re.sub(r"__restrict__|__grid_constant__", " ", text)
    match = re.fullmatch(r"(?P<type>.*?[\s*>&])(?P<name>\w+)", words.strip(), flags=re.S)
    if not match or "&" in words:
        raise ValueError(f"{source.name}: {entry} has a parameter the launcher cannot read: {text!r}")
    kind = match["type"].strip()
    many = re.fullmatch(r"(?:const\s+)?Many\s*<\s*(?P<element>.*),[^,]*>", kind, flags=re.S)
    if many:
        kind = many["element"].strip()
    const = bool(re.search(r"\bconst\b", kind))
    kind = re.sub(r"\bconst\b", " ", kind)
    pointer = "*" in kind
    kind = " ".join(kind.replace("*", " ").split())
    return Parameter(match["name"], kind, pointer, const, bool(many))
