"""What a variant of an imported kernel is: its text and files, what is guessed of it, and the sizes that it takes."""

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kernels.cuda.cplusplus import Token

DECIDE = "DECIDE"
IMPORTED = ("Kernel", "Loaded", "as_int32", "blocks", "math", "max", "min", "most_shared", "multiprocessors")
WHOLE = ("int", "unsigned", "long", "long long", "unsigned long", "unsigned long long")
BLOCK = 256  # threads, where nobody says


@dataclass(frozen=True)
class Guess:
    """What no name of a kernel says, and a trial in the simulator does (reader.py).

    masks: it masks by itself, in every call. heads: its attention's tensors are (B, NH, T, HS), else (B, T, NH, HS).
    keeps_lse: what goes by a name of lse's is that. turned: a product's weight is K x N. swapped: two inputs that go by
    no name known are the other way round. tried: it was right so, and nobody need look.
    """

    masks: bool = False
    heads: bool = True
    keeps_lse: bool = True
    turned: bool = False
    swapped: bool = False
    tried: bool = False

    def said(self, fields: Sequence[str]) -> str:
        """For people: these of its fields."""
        told = {
            "masks": ("takes no mask", "masks by itself"),
            "heads": ("its tensors are (B, T, NH, HS)", "its tensors are (B, NH, T, HS)"),
            "keeps_lse": ("keeps no lse", "keeps lse"),
            "turned": ("its weight is N x K", "its weight is K x N"),
            "swapped": ("its inputs are in the contract's order", "its inputs are in the other order"),
        }
        return ", ".join(told[name][getattr(self, name)] for name in fields)


NO_GUESS = Guess()


@dataclass
class Adopted:
    """The text of a variant, and how many lines are left to decide."""

    text: str
    files: dict[Path, bytes]  # the kernel's source and headers, unchanged, by where they go
    decide: list[str]
    phase: str = "forward"
    open: tuple[str, ...] = ()  # fields of its Guess that nothing but a trial tells
    squares: bool = False  # it takes square matrices alone, of which the proof has hardly any

    def noted(self, said: str, mark: str) -> "Adopted":
        """With a comment in front of the phase's function, to be decided where it has that mark."""
        line = f"# {mark}: {said}" if mark else f"# {said[0].upper()}{said[1:]}."
        begins = f"\ndef {self.phase}("
        text = self.text.replace(begins, f"\n{line}{begins}", 1)
        return replace(self, text=text, decide=[*self.decide, *([line] if mark else [])])


@dataclass(frozen=True)
class Whole:
    """Sizes that a kernel takes: multiples of `tile`, those that a product sums over of `inner`. Axes other than
    the last may be anything, unless `rows`."""

    tile: int
    inner: int
    rows: bool = True


def safe(name: str) -> str:
    name = re.sub(r"\W", "_", name)
    taken = name in ("i", "launch", *IMPORTED) or keyword.iskeyword(name) or not name[:1].isalpha()
    return f"{name}_" if taken else name


def is_number(tokens: Sequence[Token]) -> bool:
    """Whether an expression is made of numbers alone: 1 << 20."""
    return any(t.kind == "number" for t in tokens) and all(t.kind in ("number", "sign") for t in tokens)


def texts_of(*parts: Sequence[Token]) -> set[str]:
    return {t.text for part in parts for t in part}
