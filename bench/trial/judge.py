"""The judge: it draws what calls are given, keeps their truth to itself, and looks at what they hand back.

    judge = Judge()                                 a process of its own, which never loads what it judges
    judge.prepare(cases, yardstick)                 draw them and work out their truth, while something else goes on
    judge.given(case)                               where the inputs of one of them lie
    judge.judge(case, handed)                       what is to be said of one call's outputs

Truth is in the judge's memory alone. A variant's process gets inputs, and hands back everything that a call was given
and left behind, raw (bench/core/shared.py).

Where variants run on a GPU the judge works there too: inputs are laid into a window of the device's memory, from which
a variant's process copies them, and into which it copies what a call left. The judge owns the window and keeps nothing
in it: inputs are laid anew each time they are asked for, outputs copied out before anything is looked at. Where a
process cannot map it, all goes through the host's memory, and a note says why.
"""

import ctypes
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch

from bench import cli
from bench.core import process
from bench.core.arena import Arena, handed_bytes, memory_in, poison_of
from bench.core.case import Case, Values
from bench.core.contents import Contents
from bench.core.process import Process, ProcessFailed
from bench.core.shared import Box, Given, Window, ipc_of, opened, placed, put_into, stored, values_in
from bench.core.variants import Variant
from bench.machine.devices import Cpu, is_gpu, open_device
from bench.trial import checks, truth
from bench.trial.accuracy import Yard
from bench.trial.checks import Verdict
from bench.trial.truth import Brief, Means

TRUTH_LIMIT_S = 600.0  # truth in fp64 may take longer than any variant
Content = tuple[int, int]  # which draw, and the seed that changes it (bench/core/contents.py)
AS_DRAWN: Content = (0, 0)
UNMAPPED = "unmapped"  # how a command fails whose process cannot map the judge's window
CONTEXT = 600 << 20  # bytes of a process that uses a GPU before it has a tensor
LEAST_WINDOW = 32 << 20  # bytes: most cases of a proof fit, so that it is made once
TWO_CALLS = 1 << 30  # bytes of what a call leaves up to which a window has room for two
SMALL = 1e8  # FLOPs plus bytes of a case that one thread is enough for: the others would take a core from who is proved
KEPT_BYTES = 1 << 29  # of draws, beside which what was worked out in is not kept for the next formula
TRIM_THRESHOLD, MMAP_MAX, MOST = -1, -4, 2**31 - 1  # of mallopt(3)


@dataclass(frozen=True)
class Handed:
    """What a call left behind: where it lies, and what the guard bands and the poison were made from."""

    path: str  # "": in the judge's window
    size: int
    start: int  # bytes into it
    workspace_bytes: int | None
    guard: int
    poison: int
    probes: list[tuple[str, int, list[int]]]  # seen at once after the call: output, start, bits
    window: str = ""  # its name


class Lost(Exception):
    """What was handed back lies in the window of a judge that is no more."""


@dataclass
class Known:
    """A case in the judge's memory."""

    case: Case
    draws: list[Values]
    boxes: list[Box]
    given: list[Given]
    hard: Case | None = None  # the structured case that the last draw is of
    yards: dict[Content, list[Yard]] = field(default_factory=dict)
    yardstick: Variant | None = None

    def case_of(self, content: Content) -> Case:
        """The case that contents are of: all draws but a hard one are the same one's."""
        return self.hard if self.hard and content[0] == len(self.draws) - 1 else self.case

    def contents(self, content: Content) -> Contents:
        entry, seed = content
        return Contents(self.case_of(content), self.draws[entry], seed)

    def like(self, case: Case) -> list[Yard] | None:
        """Yards of other contents of a case."""
        return next((yards for content, yards in self.yards.items() if self.case_of(content) == case), None)


class JudgeRoom(process.Room):
    """The inside of the judge's process."""

    def __init__(self, threads: int, device: str = "cpu"):
        if threads:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        self.device = open_device(device) if is_gpu(device) else None
        if not self.device:
            keep_memory()
        self.where = truth.where_of(self.device, device) if self.device else truth.CPU
        self.ipc = ipc_of(self.device) if self.device else None
        self.window: Window | None = None
        self.refused = "" if self.ipc else "the device's memory cannot be shared"
        self.known: dict[str, Known] = {}
        self.rates: tuple[float, float] | None = None
        self.waiting: list[Case] = []  # whose truth is worked out while nobody asks

    def prepare(self, cases: list[Case], yardstick: Variant | None, truth_too: bool) -> list[list[Given]]:
        """Draw each case, as it is proved; where its inputs lie. On a CPU its truth comes later: a variant can be
        called meanwhile."""
        given = [self.draws(case, [case.seed]) for case in cases]
        for case in cases if truth_too else ():
            if self.device:
                self.truths(case, yardstick, [AS_DRAWN])
            else:
                self.known[str(case)].yardstick = yardstick
                self.waiting.append(case)
        return given

    def idle(self) -> bool:
        """Work out the truth of a case that is being proved."""
        if not self.waiting:
            return False
        case = self.waiting.pop(0)
        if str(case) in self.known:
            with suppress(Exception):  # whoever asks for it will hear
                self._yards(case, AS_DRAWN)
        return True

    def rest(self) -> None:
        """Nothing is worked out any more unless somebody asks for it."""
        self.waiting.clear()

    def draws(self, case: Case, seeds: list[int], hard: Case | None = None) -> list[Given]:
        """Draw a case with each seed, and at last a structured one of the same shape; where the inputs lie. Those on a
        GPU lie nowhere before they are laid."""
        key, old = str(case), self.known.get(str(case))
        if old is None or old.hard != hard:
            self._share_cores(case)
            for box in old.boxes if old else ():
                box.close()
            cases = [replace(case, seed=seed) for seed in seeds] + ([hard] if hard else [])
            self.known[key] = Known(case, self._drawn(cases), [], [], hard)
            if not self.device:
                self._store(self.known[key])
                self._release()
        return self.known[key].given

    def _drawn(self, cases: list[Case]) -> list[Values]:
        """Several side by side, for random numbers come from one thread each; a proof's cases are drawn one by one."""
        if self.device or len(cases) == 1:
            return [truth.drawn(case, self.where) for case in cases]
        with ThreadPoolExecutor(len(cases)) as threads:
            return list(threads.map(truth.drawn, cases))

    def _store(self, known: Known) -> None:
        """Into boxes. On a CPU they are the judge's draws as well: sealed, nobody else can write to them."""
        boxes, given = zip(*map(stored, known.draws), strict=True)
        known.boxes, known.given = list(boxes), list(given)
        if not self.device:
            known.draws = [values_in(box.bytes, at.table) for box, at in zip(boxes, given, strict=True)]

    def lay(self, case: Case, host: bool, why: str) -> list[Given]:
        """Put a case's draws where another process can get at them: into the window, or into boxes of the host's
        memory, and why."""
        known = self.known[str(case)]
        if host or self.refused:
            if not known.given:
                self._store(known)
            return [replace(given, note=why if host else self.refused) for given in known.given]
        tables, end = [], 0
        for values in known.draws:
            table, end = placed(values, end)
            tables.append(table)
        left = handed_bytes(case)
        try:
            window = self._window_of(max(end, left if left > TWO_CALLS else 2 * left))
        except OSError as error:
            self.refused = f"the judge's memory on the device cannot be shared: {error}"
            return self.lay(case, host, why)
        for table, values in zip(tables, known.draws, strict=True):
            put_into(window.bytes, table, values)
        assert self.device
        self.device.synchronize()
        return [Given("", len(window.bytes), table, window.name) for table in tables]

    def _window_of(self, size: int) -> Window:
        """The window, of at least this size."""
        assert self.ipc and self.device
        if self.window is None or len(self.window.bytes) < size:
            self._close_window()
            self.device.release_unused()
            self.window = self.ipc.window(max(LEAST_WINDOW, size))
        return self.window

    def _close_window(self) -> None:
        if self.window:
            self.window.close()
        self.window = None

    def truths(self, case: Case, yardstick: Variant | None, contents: list[Content]) -> None:
        """Work out the truth of some contents."""
        self.known[str(case)].yardstick = yardstick
        for content in contents:
            for yard in self._yards(case, content):
                yard.look()
        if len(contents) > 1 or contents != [AS_DRAWN]:  # a timed shape: what is held for later may be gigabytes
            self._release()

    def _yards(self, case: Case, content: Content) -> list[Yard]:
        """Truth and yards of contents, worked out where they are not known."""
        self._share_cores(case)
        known = self.known[str(case)]
        if content not in known.yards:
            case = known.case_of(content)
            like, contents = known.like(case), known.contents(content)
            known.yards[content] = truth.yards_of(case, contents, known.yardstick, self.where, like)
            truth.let_go(known.yards[content])
        return known.yards[content]

    def _share_cores(self, case: Case) -> None:
        torch.set_num_threads(1 if not self.device and truth.work_of(case) < SMALL else self.threads)

    def judge(self, case: Case, content: Content, handed: Handed) -> Verdict:
        yards, known = self._yards(case, content), self.known[str(case)]
        contents, of = known.contents(content), known.case_of(content)
        arena = self.laid_out(of, handed, contents.drawn)
        verdict = checks.inspect(arena, Brief(of, contents, yards), handed.probes)
        if content != AS_DRAWN and verdict.borderline:  # by the yard of other contents
            yards = known.yards[content] = truth.worked_out(of, contents, known.yardstick, self.where)
            verdict = checks.inspect(arena, Brief(of, contents, yards), handed.probes)
        truth.let_go(yards)
        if content != AS_DRAWN:
            del arena
            self._release()
        return verdict

    def same(self, case: Case, one: Handed, other: Handed) -> bool:
        """Whether the outputs of two calls are equal, bit by bit."""
        return checks.same(self.laid_out(case, one, {}), self.laid_out(case, other, {}))

    def means(self) -> Means | None:
        """What there is for judging; None on a CPU."""
        if not self.device:
            return None
        self.rates = self.rates or truth.rates_of(self.device)
        self.device.release_unused()
        flops, size = self.rates
        context = getattr(self.device, "context_bytes", CONTEXT)
        return Means(free_bytes=self.device.free_bytes(), context_bytes=context, flops_per_s=flops, bytes_per_s=size)

    def forget(self) -> None:
        for known in self.known.values():
            for box in known.boxes:
                box.close()
        self.known.clear()
        self.waiting.clear()
        self._close_window()
        (self.device or Cpu()).release_unused()

    def laid_out(self, case: Case, handed: Handed, values: Values) -> Arena:
        """What was handed back, as an arena."""
        memory = memory_in(self._bytes_of(handed)[handed.start :])
        arena = Arena(case, self.where.place, handed.workspace_bytes, handed.guard, memory)
        arena.poison = poison_of(handed.poison)
        arena.initial = {name: values[name] for name in arena.outputs if values.get(name) is not None}
        return arena

    def _bytes_of(self, handed: Handed) -> torch.Tensor:
        """A copy of them: who has the window mapped cannot change what is looked at."""
        if not handed.window:
            return opened(handed.path, handed.size).to(self.where.place)
        if self.window is None or handed.window != self.window.name:
            raise Lost("the outputs of this call were lost with the judge's process, which had to be begun anew")
        return self.window.bytes[: handed.size].clone()

    def _release(self) -> None:
        """Of memory that nothing uses: on a CPU the next formula is better off with it, unless it is gigabytes."""
        if self.device or sum(box.size for known in self.known.values() for box in known.boxes) > KEPT_BYTES:
            (self.device or Cpu()).release_unused()

    def broken(self) -> bool:
        """Whether the device is of no more use: an illegal address, say, ends a CUDA context."""
        try:
            if self.device:
                self.device.synchronize()
        except Exception:
            return True
        return False


def keep_memory() -> None:
    """Have glibc keep for the next formula, or case, what the last one gave back: each temporary of a large tensor is
    otherwise made of new pages, which takes longer than what is worked out in it."""
    with suppress(AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, MOST)


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

    def __init__(self, threads: int = 0, device: str = "cpu"):
        """device: that variants run on, by its name; the judge works there too."""
        self.threads, self.device = threads, device
        self.host = ""  # why inputs go through the host's memory, once they do
        self._process: Process | None = None
        self._waiting: tuple[str, dict[str, Any]] | None = None  # a command whose answer has not been taken
        self._asked: list[tuple[str, dict[str, Any]]] = []  # all that the process knows
        self._given: dict[str, list[Given]] = {}
        self._lost: dict[str, ProcessFailed] = {}  # why a case could not be prepared
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
            self._process = Process(JudgeRoom, self.threads, self.device, limit=TRUTH_LIMIT_S)
            for command, arguments in self._asked:
                self._took(command, arguments, self._process.ask(command, **arguments))
        return self._process

    @_in_turn
    def prepare(self, cases: Sequence[Case], yardstick: Variant | None, truth_too: bool = True) -> None:
        """Have cases drawn and their truth worked out; does not wait."""
        new = [case for case in cases if str(case) not in self._given]
        for case in new:
            self._lost.pop(str(case), None)
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
            if failure.status == process.ERROR and command == "prepare":  # for who wants it, not for who comes by
                self._lost |= {str(case): failure for case in arguments["cases"]}
                return
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
    def given(self, case: Case, device: str | None = None) -> Given:
        """Where a prepared case's inputs lie: in memory that ends with the judge: one that was killed is begun anew.
        device: of the process that they are for, where it is not the judge's own."""
        self._collect()
        if failure := self._lost.get(str(case)):
            raise _no_truth(failure) from failure
        if is_gpu(self.device):
            elsewhere = device not in (None, self.device)
            return self._ask("lay", case=case, host=True, why="")[0] if elsewhere else self._laid(case)[0]
        self._try(self.start)
        return self._given[str(case)][0]

    def _laid(self, case: Case) -> list[Given]:
        """Inputs on a GPU, laid anew: nobody can have changed them for the next one who asks."""
        return self._ask("lay", case=case, host=bool(self.host), why=self.host)

    def with_inputs(self, ask: Callable[[], Any]) -> Any:
        """What comes of a command that a process is given inputs for; asked again, through the host's memory, where it
        cannot map the window. Raises ProcessFailed."""
        try:
            return ask()
        except ProcessFailed as failure:
            if failure.status != UNMAPPED:
                raise
            self.host = failure.evidence
        return ask()

    @_in_turn
    def pool(
        self,
        case: Case,
        yardstick: Variant | None,
        seeds: Sequence[int],
        contents: Iterable[Content] = (),
        hard: Case | None = None,
    ) -> list[Given]:
        """Draws of a case that is timed, and one of a structured case at its shape, which comes last; the truth of the
        contents that will be judged is worked out from now on."""
        what = {"case": case, "seeds": list(seeds), "hard": hard}
        self._took("draws", what, self._ask("draws", **what))
        self._send("truths", case=case, yardstick=yardstick, contents=list(contents))
        return self._given[str(case)]

    @_in_turn
    def draws_of(self, case: Case) -> list[Given]:
        """Where the draws of a timed case lie. Does not wait for their truth, unless the judge has to be begun anew."""
        if is_gpu(self.device):
            return self._laid(case)
        if self._process is None or not self._process.alive:
            self._collect()
            self._try(self.start)
        return self._given[str(case)]

    @property
    def behind(self) -> bool:
        """Whether it can look at what one call left while the next is made: on a GPU both lie in the same window."""
        return not is_gpu(self.device)

    @_in_turn
    def means(self) -> Means | None:
        """What a GPU has for judging; None on a CPU."""
        return self._ask("means") if is_gpu(self.device) else None

    @_in_turn
    def ready(self) -> None:
        """Wait until all that was asked for is worked out; of what was not, nothing is from now on."""
        self._collect()
        if self._process and self._process.alive:
            self._ask("rest")

    @_in_turn
    def judge(self, case: Case, handed: Handed, content: Content = AS_DRAWN) -> Verdict:
        return self._ask("judge", case=case, content=content, handed=handed)

    @_in_turn
    def same(self, case: Case, one: Handed, other: Handed) -> bool:
        return self._ask("same", case=case, one=one, other=other)

    @_in_turn
    def forget(self) -> None:
        """Let go of all cases: a large shape's truth is gigabytes. Waits for it on a GPU, where others need that."""
        self._collect()
        if self._given and self._process and self._process.alive:
            self._ask("forget") if is_gpu(self.device) else self._send("forget")
        for known in (self._asked, self._given, self._lost):
            known.clear()


def _no_truth(failure: ProcessFailed) -> ProcessFailed:
    way = cli.WAYS_OUT[errno.EMFILE] if os.strerror(errno.EMFILE) in failure.evidence else ""
    told = f"the truth could not be worked out: {failure.evidence}{f' ({way})' if way else ''}"
    return ProcessFailed(process.ERROR, told)
