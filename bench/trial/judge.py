"""The judge: it draws what calls are given, keeps their truth to itself, and looks at what they hand back.

    judge = Judge()                                 a process of its own, which never loads what it judges
    judge.prepare(cases, yardstick)                 draw them and work out their truth, while something else goes on
    judge.given(case)                               where the inputs of one of them lie
    judge.judge(case, handed)                       what is to be said of one call's outputs

Truth is in the judge's memory alone. A variant's process gets inputs, and hands back everything that a call was given
and left behind, raw (bench/core/shared.py).
"""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch

from bench.core import process
from bench.core.arena import Arena, memory_in, poison_of
from bench.core.case import Case, Values, draw
from bench.core.contents import changed
from bench.core.process import Process, ProcessFailed
from bench.core.shared import Box, Given, opened, stored
from bench.core.variants import Variant
from bench.trial import checks, truth
from bench.trial.checks import Verdict
from bench.trial.truth import Brief, Yard

TRUTH_LIMIT_S = 600.0  # truth in fp64 may take longer than any variant
Content = tuple[int, int]  # which draw, and the seed that changes it (bench/core/contents.py)
AS_DRAWN: Content = (0, 0)


@dataclass(frozen=True)
class Handed:
    """What a call left behind: where it lies, and what the guard bands and the poison were made from."""

    path: str
    size: int
    start: int  # bytes into it
    workspace_bytes: int | None
    guard: int
    poison: int
    probes: list[tuple[str, int, list[int]]]  # seen at once after the call: output, start, bits


@dataclass
class Known:
    """A case in the judge's memory."""

    case: Case
    draws: list[Values]
    boxes: list[Box]
    given: list[Given]
    yards: dict[Content, list[Yard]] = field(default_factory=dict)

    def values(self, content: Content) -> Values:
        entry, seed = content
        return changed(self.case, self.draws[entry], seed) if seed else self.draws[entry]


class JudgeRoom(process.Room):
    """The inside of the judge's process."""

    def __init__(self, threads: int):
        if threads:
            torch.set_num_threads(threads)
        self.known: dict[str, Known] = {}

    def prepare(self, cases: list[Case], yardstick: Variant | None, truth_too: bool) -> list[list[Given]]:
        """Draw each case, as it is proved; where its inputs lie."""
        given = [self.draws(case, [case.seed]) for case in cases]
        for case in cases if truth_too else ():
            self.truths(case, yardstick, [AS_DRAWN])
        return given

    def draws(self, case: Case, seeds: list[int]) -> list[Given]:
        """Draw a case with each seed; where the inputs lie."""
        key = str(case)
        if key not in self.known:
            drawn = [draw(replace(case, seed=seed)) for seed in seeds]
            boxes, given = zip(*map(stored, drawn), strict=True)
            self.known[key] = Known(case, drawn, list(boxes), list(given))
        return self.known[key].given

    def truths(self, case: Case, yardstick: Variant | None, contents: list[Content]) -> None:
        """Work out the truth of some contents."""
        known = self.known[str(case)]
        for content in contents:
            if content not in known.yards:
                like = next(iter(known.yards.values()), None)
                known.yards[content] = truth.yards_of(case, known.values(content), yardstick, like=like)

    def judge(self, case: Case, content: Content, handed: Handed) -> Verdict:
        known = self.known[str(case)]
        values = known.values(content)
        arena = laid_out(case, handed, values)
        return checks.inspect(arena, Brief(case, values, known.yards[content]), handed.probes)

    def same(self, case: Case, one: Handed, other: Handed) -> bool:
        """Whether the outputs of two calls are equal, bit by bit."""
        return checks.same(laid_out(case, one, {}), laid_out(case, other, {}))

    def forget(self) -> None:
        for known in self.known.values():
            for box in known.boxes:
                box.close()
        self.known.clear()


def laid_out(case: Case, handed: Handed, values: Values) -> Arena:
    """What was handed back, as an arena."""
    box = opened(handed.path, handed.size)
    arena = Arena(case, "cpu", handed.workspace_bytes, handed.guard, memory_in(box[handed.start :]))
    arena.poison = poison_of(handed.poison)
    arena.initial = {name: values[name] for name in arena.outputs if values.get(name) is not None}
    return arena


Method = TypeVar("Method", bound=Callable[..., Any])


def _in_turn(method: Method) -> Method:
    """One thread at a time."""

    @functools.wraps(method)
    def locked(self: "Judge", *arguments: Any, **keywords: Any) -> Any:
        with self._lock:
            return method(self, *arguments, **keywords)

    return cast(Method, locked)


class Judge:
    """The parent's end. A judge that is killed is started again, and knows again what the old one knew."""

    def __init__(self, threads: int = 0):
        self.threads = threads
        self._process: Process | None = None
        self._waiting: tuple[str, dict[str, Any]] | None = None  # a command whose answer has not been taken
        self._asked: list[tuple[str, dict[str, Any]]] = []  # all that the process knows
        self._given: dict[str, list[Given]] = {}
        self._lock = threading.RLock()  # variants are proved in several threads

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._process:
            self._process.close()
        self._process, self._waiting = None, None

    @_in_turn
    def start(self) -> Process:
        if self._process is None or not self._process.alive:
            self._close()
            self._process = Process(JudgeRoom, self.threads, limit=TRUTH_LIMIT_S)
            for command, arguments in self._asked:
                self._took(command, arguments, self._process.ask(command, **arguments))
        return self._process

    @_in_turn
    def prepare(self, cases: Sequence[Case], yardstick: Variant | None, truth_too: bool = True) -> None:
        """Have cases drawn and their truth worked out; does not wait."""
        new = [case for case in cases if str(case) not in self._given]
        if new:
            self._send("prepare", cases=new, yardstick=yardstick, truth_too=truth_too)

    def _send(self, command: str, **arguments: Any) -> None:
        self._collect()
        self._try(lambda: self.start().send(command, **arguments))
        self._waiting = command, arguments

    def _collect(self) -> None:
        """Take the answer that is being waited for."""
        if self._waiting is None:
            return
        (command, arguments), self._waiting = self._waiting, None
        try:
            assert self._process
            answer = self._process.answer()
        except ProcessFailed as failure:
            if failure.status == process.ERROR:
                raise _no_truth(failure) from failure
            answer = self._ask(command, **arguments)
        self._took(command, arguments, answer)

    def _took(self, command: str, arguments: dict[str, Any], answer: Any) -> None:
        """Keep what the process now knows, for one that may have to take its place, and where inputs lie."""
        if (command, arguments) not in self._asked:
            self._asked.append((command, arguments))
        if command == "prepare":
            self._given |= {str(case): given for case, given in zip(arguments["cases"], answer, strict=True)}
        elif command == "draws":
            self._given[str(arguments["case"])] = answer

    def _ask(self, command: str, **arguments: Any) -> Any:
        """The answer of a judge that is begun anew, once, where it was lost."""
        self._collect()
        return self._try(lambda: self.start().ask(command, **arguments))

    def _try(self, do: Callable[[], Any]) -> Any:
        for last in (False, True):
            try:
                return do()
            except ProcessFailed as failure:
                # Not the variant's fault, whichever it is.
                if last or failure.status == process.ERROR:
                    raise _no_truth(failure) from failure
                self._close()

    @_in_turn
    def given(self, case: Case) -> Given:
        """Where a prepared case's inputs lie: in memory that ends with the judge: one that was killed is begun anew."""
        self._collect()
        self._try(self.start)
        return self._given[str(case)][0]

    @_in_turn
    def pool(
        self, case: Case, yardstick: Variant | None, seeds: Sequence[int], contents: Iterable[Content] = ()
    ) -> list[Given]:
        """Draws of a case that is timed; the truth of the contents that will be judged is worked out from now on."""
        answer = self._ask("draws", case=case, seeds=list(seeds))
        self._took("draws", {"case": case, "seeds": list(seeds)}, answer)
        self._send("truths", case=case, yardstick=yardstick, contents=list(contents))
        return self._given[str(case)]

    @_in_turn
    def draws_of(self, case: Case) -> list[Given]:
        """Where the draws of a timed case lie. Does not wait for their truth, unless the judge has to be begun anew."""
        if self._process is None or not self._process.alive:
            self._collect()
            self._try(self.start)
        return self._given[str(case)]

    @_in_turn
    def ready(self) -> None:
        """Wait until all that was asked for is worked out."""
        self._collect()

    @_in_turn
    def judge(self, case: Case, handed: Handed, content: Content = AS_DRAWN) -> Verdict:
        return self._ask("judge", case=case, content=content, handed=handed)

    @_in_turn
    def same(self, case: Case, one: Handed, other: Handed) -> bool:
        return self._ask("same", case=case, one=one, other=other)

    @_in_turn
    def forget(self) -> None:
        """Let go of all cases: a large shape's truth is gigabytes."""
        self._collect()
        if self._process and self._process.alive:
            self._ask("forget")
        self._asked.clear()
        self._given.clear()


def _no_truth(failure: ProcessFailed) -> ProcessFailed:
    return ProcessFailed(process.ERROR, f"the truth could not be worked out: {failure.evidence}")
