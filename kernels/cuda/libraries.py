"""What the bindings of NVIDIA's libraries share: where the libraries lie, what a row tells of them, what is only asked.

A library's kernels run on a GPU alone. Without one a stand-in can be put in its place (tests/stand_in), which reads
back what the library was told; and who only asks which kernels a variant launches beside it (bench/gpu/launches.py) has
its calls taken as made, `on_paper`.
"""

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernels import Unavailable

# What a variant's REQUIRES says, and which module here binds it.
BINDINGS = {"cublaslt": "kernels.cuda.cublaslt", "cudnn": "kernels.cuda.cudnn_graph"}
WAY_OUT = "pip install 'layerbench[vendor]'"

_only: dict[str, bool] = {"on paper": False, "untuned": False}


@contextlib.contextmanager
def _set(what: str) -> Iterator[None]:
    before, _only[what] = _only[what], True
    try:
        yield
    finally:
        _only[what] = before


def on_paper() -> contextlib.AbstractContextManager[None]:
    """Calls on the CPU's tensors are taken as made inside, where nothing forbids them."""
    return _set("on paper")


def untuned() -> contextlib.AbstractContextManager[None]:
    """Preparing plans inside, and measures nothing."""
    return _set("untuned")


def is_on_paper() -> bool:
    return _only["on paper"]


def is_untuned() -> bool:
    return _only["untuned"]


class Calls:
    """A variant's calls of a library. `used`: what the last ones ran, in words or with a `text` of it, which a row of
    results tells as its configuration."""

    def __init__(self) -> None:
        self.used: dict[int | str, Any] = {}

    def own(self, what: str) -> None:
        """A kernel of the variant's own did this part."""
        self.used[what] = f"{what} (own)"

    def text(self) -> str:
        told = (each if isinstance(each, str) else each.text() for each in self.used.values())
        return "; ".join(dict.fromkeys(told))


def calls_of(module: Any) -> list[Calls]:
    """Those that a variant's module makes."""
    return [value for value in vars(module).values() if isinstance(value, Calls)]


@functools.cache
def missing(need: str, device: str) -> str | None:
    """Why what REQUIRES names cannot run on a device, and the way out; None where it can."""
    binding = importlib.import_module(BINDINGS[need])
    if not device.startswith("cuda"):
        return f"{binding.NAME} needs an NVIDIA GPU; without one its calls are proved over a stand-in ({binding.PROOF})"
    try:
        binding.loaded()
    except Unavailable as error:
        return str(error)
    return None


def package_folders() -> list[Path]:
    """Where NVIDIA's packages for pip keep their libraries."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else ()
    return sorted(folder for root in roots for folder in Path(root).glob("*/lib"))
