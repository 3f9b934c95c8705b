"""What ran on a GPU: the kernels of a call by name, and which of them are a variant's own.

Own code may run the kernels that its own sources define: `__global__` functions of the .cu files that its Python names
or that share its stem, `@triton.jit` functions, and those of the modules that it imports from its backend. What else it
runs (a library's kernel, or one that is compiled elsewhere) must match its KERNELS. Copies and fills are nobody's code.
"""

import ast
import fnmatch
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bench import HOME
from bench.core.variants import Variant
from bench.machine.devices import BUSY, Device, Kernel

COPIES = ("Memcpy", "Memset")
NAME_LENGTH = 100  # of a kernel's name in a record


def watch(device: Device, call: Callable[[], object]) -> tuple[list[Kernel], int]:
    """Make one call on a GPU: the kernels it ran, and the bytes of tensors it allocated beyond those there before.

    Raises RuntimeError where the profiler saw no kernel.
    """
    with device.timer(BUSY) as timer:
        device.synchronize()
        device.forget_peak()
        before, _ = device.memory()
        timer.start()
        call()
        timer.stop()
        _, peak = device.memory()
    return timer.kernels[0], peak - before


def counts(kernels: Iterable[Kernel]) -> dict[str, int]:
    """How often each kernel ran, by its short name: without return type and parameters."""
    return dict(Counter(short(k.name) for k in kernels))


def short(name: str) -> str:
    name = name.removeprefix("void ")
    name = re.sub(r"\((?!anonymous namespace).*$", "", name) if not name.startswith(COPIES) else name
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def foreign(variant: Variant, names: Iterable[str]) -> list[str]:
    """Of the kernels that ran, the short names of those that are not the variant's own code."""
    own = own_kernels(variant)
    return sorted(
        {
            short(name)
            for name in names
            if qualified(name) not in own
            and not name.startswith(COPIES)
            and not any(fnmatch.fnmatchcase(qualified(name), pattern) for pattern in variant.kernels)
        }
    )


def qualified(name: str) -> str:
    """A demangled name's function with its namespaces: `void a::f<float, 64>(float*)` is `a::f`."""
    plain = name.replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", plain, maxsplit=1)[0].strip().rpartition(" ")[2]


@functools.cache
def own_kernels(variant: Variant) -> frozenset[str]:
    """Names of all kernels that a variant's sources define, without templates and parameters."""
    modules, sources = _sources(variant.path)
    sources.add(variant.path.with_suffix(".cu"))
    found = {name for path in modules for name in _jit_functions(path)}
    return frozenset(found | {name for path in sources if path.exists() for name in _global_functions(path)})


def _sources(start: Path) -> tuple[set[Path], set[Path]]:
    """The Python files that a variant consists of, its backend's shared ones included, and the .cu files they name."""
    modules: set[Path] = set()
    sources: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in modules:
            continue
        modules.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                waiting += _imported(path, node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".cu"):
                sources.add((path.parent / node.value).resolve())
    return modules, sources


def _imported(path: Path, node: ast.ImportFrom) -> Iterator[Path]:
    """The files of `from kernels.… import …` and of relative imports; other modules are not a variant's own code."""
    parts = (node.module or "").split(".") if node.module else []
    if node.level:
        folder = path.parents[node.level - 1]
    elif parts[0] == "kernels":
        folder = HOME
    else:
        return
    base = folder.joinpath(*parts)
    for file in (base.with_suffix(".py"), base / "__init__.py", *(base / f"{a.name}.py" for a in node.names)):
        if file.is_file():
            yield file


def _jit_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
            yield node.name


def _global_functions(path: Path) -> list[str]:
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", path.read_text(), flags=re.S)
    return re.findall(r"__global__\s+[^;{}]*?\b(?!__launch_bounds__)(\w+)\s*\(", text)
