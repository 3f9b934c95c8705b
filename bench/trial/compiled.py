"""What NVRTC sees of a variant's CUDA sources: kernels that it launches, what they mention, and no code of the host's.

    Compiled(modules, starts).texts(path, text)     the texts to read of one file, of the same lines

Which kernels those are is told where the variant's own Python can say nothing else: every `Kernel` is made of two
texts, its objects are called and nothing else, and what a launch gives by keyword is a text or a number that stands
there. Otherwise all kernels of a file count, and all functions of the device. What a branch of the preprocessor hides
counts as mentioned: a macro may be given at the launch.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.trial.modules import Module
from kernels.cuda import cplusplus

LAUNCHED_BY = frozenset({"grid", "block", "shared", "cooperative", "cluster"})  # of a launch, no word of C++
UNAVAILABLE = "Unavailable"


class Compiled:
    """Of one variant: its modules, and the sources that they name."""

    def __init__(self, modules: Sequence[Module], starts: Iterable[Path]):
        entries = _entries(modules)
        words = {word for _, _, text in texts_of(modules) for word in re.findall(r"[A-Za-z_]\w*", text)}
        self.seen: dict[Path, list[str]] = {}
        for start in {path.resolve() for path in starts if path.is_file()}:
            unit = cplusplus.read(start, None, [cplusplus.HERE])
            roots = words | _hidden(unit)
            if entries is not None and start in entries:
                roots |= entries[start]
            else:
                roots |= {n for d in unit.declarations if _on_device(d) for n in d.names}
            blank = unit.without_host_code(roots) or {}
            for path, source in unit.sources.items():
                self.seen.setdefault(path, []).append(blank.get(source.name, source.text))

    def texts(self, path: Path, text: str) -> Iterator[str]:
        """What is compiled of a file, once for each source that includes it, without its libraries' headers, of which
        NVRTC is handed empty ones (kernels/cuda/standard.py)."""

        def there(found: re.Match[str]) -> str:
            return found[0] if any((folder / found[1]).is_file() for folder in (path.parent, cplusplus.HERE)) else ""

        for seen in self.seen.get(path, [text]):
            seen = re.sub(r"^[ \t]*#[ \t]*include[ \t]*<[^>\n]*>", "", seen, flags=re.M)
            yield re.sub(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]*)"', there, seen, flags=re.M)


def texts_of(modules: Iterable[Module]) -> Iterator[tuple[Path, int, str]]:
    """(file, line, text) of what a compiler may be given by a variant's Python: not what only people read."""
    for file in modules:
        for node in file.written.of(ast.Constant):
            above = file.written.parents[node]
            refused = isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id == UNAVAILABLE
            if isinstance(node.value, str) and not refused and not isinstance(above, ast.Expr):
                yield file.path, node.lineno, node.value


def _entries(modules: Iterable[Module]) -> dict[Path, set[str]] | None:
    """The words of the kernels that are launched, by their source; None where something else may be launched."""
    found: dict[Path, set[str]] = {}
    for file in modules:
        made, parents = set[str](), file.written.parents
        if any(a.asname and a.name in ("Kernel", "Loaded") for a in file.written.of(ast.alias)):
            return None
        for node in (*file.written.of(ast.Name), *file.written.of(ast.Attribute)):
            if "Kernel" not in (getattr(node, "id", ""), getattr(node, "attr", "")):
                continue
            call = parents[node]
            if not (isinstance(call, ast.Call) and call.func is node and _stands_there(call.args) and _plain(call)):
                return None
            to, texts = parents[call], [a.value for a in call.args if isinstance(a, ast.Constant)]
            target = to.targets[0] if isinstance(to, ast.Assign) and len(to.targets) == 1 else None
            if not isinstance(target, ast.Name) or len(texts) != 2:
                return None
            made.add(target.id)
            path = (file.path.parent / str(texts[0])).resolve()
            found.setdefault(path, set()).update(re.findall(r"\w+", str(texts[1])))
        for name in file.written.of(ast.Name):
            above = parents[name]
            called = above if isinstance(above, ast.Call) and above.func is name and _plain(above) else None
            if name.id in made and isinstance(name.ctx, ast.Load) and not called:
                return None
            if name.id == "Loaded" and not (called and _stands_there(called.args[1:])):
                return None
        if any(a.attr in made | {"Loaded", "expression", "entry"} for a in file.written.of(ast.Attribute)):
            return None  # another module's, or changed afterwards
    return found


def _plain(call: ast.Call) -> bool:
    """Whether all that a call gives by keyword is geometry, or stands there."""
    return all(k.arg in LAUNCHED_BY or (k.arg and isinstance(k.value, ast.Constant)) for k in call.keywords)


def _stands_there(values: Iterable[ast.expr]) -> bool:
    return all(isinstance(value, ast.Constant) for value in values)


def _on_device(d: cplusplus.Declaration) -> bool:
    return bool(d.function and d.function.qualifiers & {"__global__", "__device__"})


def _hidden(unit: cplusplus.Unit) -> set[str]:
    """Words of a unit's files that are in none of its declarations: of branches that are not taken now, of macros."""
    found = set[str]()
    for path, source in unit.sources.items():
        if source.whole:
            starts = {t.start for d in source.declarations if d.path == path for t in d.tokens}
            found |= {t.text for t in cplusplus.lex(source.text) if t.kind == "word" and t.start not in starts}
    return found
