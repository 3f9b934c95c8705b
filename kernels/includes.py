"""What a compiler may read beside a source: the files that it includes, and what those include, found before compiling.

The keys of the caches of builds stand on this. NVRTC tells no list of what it has read, and g++'s is there only after
the build, when a header that has since appeared in a folder searched earlier is not in it. So `#include` lines are
followed, those under a false `#if` and in comments too: a file too many costs a build, a file too few a stale one.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_GAP = r"(?:[ \t\v\f]|/\*.*?\*/)*"
_HASH = r"(?:#|%:|\?\?=)"
INCLUDE = re.compile(rf"{_HASH}{_GAP}(?:include_next|include|import|embed)\b{_GAP}([^\n]*)", re.DOTALL)
ASKED = re.compile(r"__has_(?:include(?:_next)?|embed)\s*\(\s*([<\"][^\n]*)")
NAMED = re.compile(r'"([^"\n]+)"|<([^>\n]+)>')
COMPUTED = re.compile(r"[A-Za-z_]\w*\s*(?:\(.*)?(?://.*|/\*.*)?$")
ASSEMBLED = re.compile(r'\.incbin\b|\.include\s*\\?"')  # by the assembler, of which no compiler tells either


@dataclass(frozen=True)
class Sources:
    """`files`: a source and what it may include, in the order they were met. `whole` is False where that cannot be
    known, because a macro makes a name: such a build must not be kept."""

    files: tuple[Path, ...]
    digest: str
    whole: bool


def sources(source: Path, folders: Sequence[Path], toolkit: Iterable[Path] = ()) -> Sources:
    """Follow the includes of `source` through its own folder and `folders`.

    Files below a folder of `toolkit` are left to its version, and so is what is found nowhere: the compiler's own
    headers. A name that two folders have counts with both. Raises OSError where the source cannot be read.
    """
    left_out = [os.path.realpath(f) + os.sep for f in toolkit]
    found: dict[str, Path] = {}
    digest, whole = hashlib.sha256(), True
    waiting = [source]
    while waiting:
        path = waiting.pop(0)
        real = os.path.realpath(path)
        if real in found or real.startswith(tuple(left_out)):
            continue
        found[real] = path
        content = path.read_bytes()
        digest.update(os.fsencode(path.name) + b"\0" + hashlib.sha256(content).digest())
        names, known = _included(content.decode(errors="replace"))
        whole &= known
        for name in names:
            waiting += [p for f in (path.parent, *folders) if (p := Path(f) / name).is_file()]
    return Sources(tuple(found.values()), digest.hexdigest(), whole)


def _included(text: str) -> tuple[list[str], bool]:
    """The names that a file includes or asks for, and whether these are all."""
    text = re.sub(r"(?:\\|\?\?/)[ \t]*\r?\n", "", text)
    names, known = [], ASSEMBLED.search(text) is None
    for rest in (*INCLUDE.findall(text), *ASKED.findall(text)):
        if found := NAMED.match(rest):
            names.append(found[1] or found[2])
        elif COMPUTED.match(rest.strip()):
            known = False
    return names, known
