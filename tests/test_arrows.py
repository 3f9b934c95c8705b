"""Imports point one way: from commands down to the reference, without a circle, and nobody imports a command."""

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from bench import HOME

# Each may import from those after it; the two of a pair know nothing of each other.
ROOMS = (
    ("commands",),
    ("trainer", "generation"),
    ("trial", "training"),
    ("gpu",),
    ("show",),
    ("models", "records"),
    ("machine", "checkpoints"),
    ("text", "adopt"),
    ("core",),
    ("simulate",),
    ("cli",),
    ("kernels",),
    ("reference",),
    ("home",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
# Lines of kernels/ are in the hashes of committed results, so this one stays: a package, and its file for a real GPU.
KNOWN_CIRCLES = [{"kernels.cuda", "kernels.cuda.gpu"}]

Sources = dict[str, str]  # of every module by its dotted name


def sources() -> Sources:
    files = [f for folder in ("bench", "kernels", "reference") for f in sorted((HOME / folder).rglob("*.py"))]
    return {module_of(file.relative_to(HOME)): file.read_text() for file in files}


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of a module: its folder in bench/, "commands" for a file beside them, else the package."""
    package, _, rest = module.partition(".")
    if package != "bench":
        return package
    room = rest.partition(".")[0]
    return {"": "home", "cli": "cli"}.get(rest) or (room if room in FLOOR else "commands")


_tree = functools.cache(ast.parse)


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that import statements among these nodes take, as they are written: bench.core.case.Case, torch."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def arrows(known: Sources) -> Iterator[tuple[str, str]]:
    """(who imports, what), wherever in a file the import stands."""
    for module, source in known.items():
        names = imported(ast.walk(_tree(source)))
        yield from sorted((module, to) for name in names if (to := _module(name, known)) and to != module)


def loads(start: str, known: Sources) -> dict[str, str]:
    """{package: by which file} of all that is loaded as soon as a module is: what stands at the top of files."""
    found: dict[str, str] = {}
    todo, seen = [start], {start}
    while todo:
        module = todo.pop()
        for name in imported(_tree(known.get(module, "")).body):
            to = _module(name, known)
            parents = {to.rsplit(".", n)[0] for n in range(to.count(".") + 1)} if to else set()
            todo += parents - seen
            seen |= parents
            if not to:
                found.setdefault(name.partition(".")[0], module)
    return found


def _module(name: str, known: Sources) -> str:
    """The module that an imported name is, or is in; "" where it is none of ours."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def faults(known: Sources) -> list[str]:
    """What is wrong with the arrows, each with the names of both ends."""
    found = []
    below: dict[str, set[str]] = {module: set() for module in known}
    for module, to in arrows(known):
        below[module].add(to)
        here, there = room_of(module), room_of(to)
        if there == "commands":
            found.append(f"{module} imports the command {to}")
        elif FLOOR[there] < FLOOR[here]:
            found.append(f"{module} imports {to}: {there} stands above {here}")
        elif FLOOR[there] == FLOOR[here] and here != there:
            found.append(f"{module} imports {to}: {here} and {there} know nothing of each other")
    found += [f"a circle: {' -> '.join(c)}" for c in circles(below) if set(c) not in KNOWN_CIRCLES]
    return found


def circles(below: dict[str, set[str]]) -> list[list[str]]:
    """A circle through each module that is in one, once."""
    found: list[list[str]] = []
    for start in below:
        if any(start in circle for circle in found):
            continue
        paths, seen = [[start]], {start}
        while paths:
            path = paths.pop(0)
            if start in below[path[-1]]:
                found.append(path)
                break
            fresh = sorted(below[path[-1]] - seen)
            seen.update(fresh)
            paths += [[*path, to] for to in fresh]
    return found


def test_imports_point_one_way():
    assert faults(sources()) == []


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        (
            "bench.core.case",
            "from bench.show import texts",
            "bench.core.case imports bench.show.texts: show stands above",
        ),
        (
            "bench.cli",
            "def f():\n    import bench.core.case",
            "bench.cli imports bench.core.case: core stands above cli",
        ),
        ("kernels.cpu", "from bench import HOME, cli", "kernels.cpu imports bench.cli: cli stands above kernels"),
        ("reference.contract", "import kernels.cpu", "reference.contract imports kernels.cpu: kernels stands above"),
        ("bench.records.run", "from bench.models.step import Step", "records and models know nothing of each other"),
        ("bench.trial.race", "from bench import layer", "bench.trial.race imports the command bench.layer"),
        ("bench.compare", "from bench.layer import parser", "bench.compare imports the command bench.layer"),
        ("bench.core.case", "from bench.core.arena import Arena", "a circle: bench.core.case -> bench.core.arena"),
    ],
)
def test_an_arrow_that_runs_back_is_told_with_both_ends(module, source, says):
    known = dict.fromkeys(
        (
            "bench",
            "bench.cli",
            "bench.layer",
            "bench.compare",
            "bench.core.case",
            "bench.core.arena",
            "bench.show.texts",
        ),
        "",
    )
    known |= dict.fromkeys(
        ("kernels.cpu", "reference.contract", "bench.models.step", "bench.records.run", "bench.trial.race"), ""
    )
    known["bench.core.arena"] = "import torch\nfrom bench.core.case import Case"
    assert faults(known) == []
    (told,) = faults({**known, module: source})
    assert says in told


# Each may be missing, or takes long and is seldom wanted; and the one file that needs it, which is loaded where it is.
SELDOM = {
    **dict.fromkeys(("cupy", "jinja2", "nvtx", "pandas", "pyarrow", "pynvml", "vl_convert"), ""),
    "altair": "bench.show.charts",
    "triton": "bench.simulate.triton_driver",
}
READERS = ("comparison_page", "history", "markdown", "report")  # of bench/show: they read runs and measure nothing


def test_what_may_be_missing_is_loaded_where_it_is_needed():
    known = sources()
    rooms = [m for m in known if m.startswith("bench.") and m not in SELDOM.values()]
    assert [(m, p, by) for m in rooms for p, by in loads(m, known).items() if p in SELDOM] == []


@pytest.mark.parametrize("module", ["bench.records.formats", *(f"bench.show.{name}" for name in READERS)])
def test_reading_runs_does_not_load_torch(module):
    assert "torch" not in loads(module, sources())


def test_what_is_loaded_is_told_with_the_file_that_loads_it():
    known = {
        "bench": "",
        "bench.show": "import altair",
        "bench.show.page": "def f():\n    import torch",
        "bench.layer": "from bench.show.page import f\nimport ast",
    }
    assert loads("bench.layer", known) == {"ast": "bench.layer", "altair": "bench.show"}
