"""What all command lines share: a parser that helps with typos, exit codes, and plain or rich output.

Nothing heavy is imported here, so that `--help` answers at once.
"""

import argparse
import atexit
import codecs
import contextlib
import difflib
import errno
import fnmatch
import functools
import json
import locale
import math
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

OK = 0
FAILED = 1  # something went wrong that is not a verdict on a kernel (disk full, cannot set up)
WRONG = 2  # a variant's result is wrong, or parity with PyTorch failed
CANNOT_RUN = 3  # a variant that was named in full cannot run here, whatever the reason
NOTHING_TRIED = 4  # a pattern named variants, and none of them takes any of what it was to be tried at
TIMED_OUT = 5  # nothing is wrong, but a variant or the training step took longer than its time limit
USAGE = 64  # the command line makes no sense (sysexits.h EX_USAGE)
INTERRUPTED = 130  # Ctrl-C, or ended from outside by SIGTERM or a closed terminal

EXIT_CODES = (
    "exit codes: 0 fine, 1 could not go on, 2 a result is wrong, 3 a named variant cannot run here, "
    "4 nothing of what was named was tried, 5 a time limit ended something, 64 usage, 130 interrupted"
)


OF_A_RUN = ("records.jsonl", "env.json")  # files that none but the run itself writes
OUTPUTS = ("out", "html", "png", "markdown", "pack", "prepare", "profile", "into")  # options that say where to write


class CannotGoOn(Exception):
    """An error with a message for the user and the exit code that goes with it."""

    def __init__(self, message: str, code: int = FAILED):
        super().__init__(message)
        self.code = code


class Help(argparse.RawDescriptionHelpFormatter):
    """Texts as they are written where the terminal has room for them, and filled anew where it has not."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in filled(text, width - len(indent)))


FIRST_COLUMN = re.compile(r"\s*\S+(?: \S+)*\s{2,}(?=\S)")
COMMAND = re.compile(r"\s*(python -m|torchrun|sh) ")


def filled(text: str, width: int) -> list[str]:
    """The lines of a text of paragraphs, commands with a remark, and tables of two columns, none wider than `width`
    but for commands and single words."""
    lines = text.rstrip().splitlines()
    if max(map(len, lines), default=0) <= width:
        return lines
    fill = functools.partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    found: list[str] = []
    while lines:
        line = lines.pop(0)
        column = FIRST_COLUMN.match(line)
        if column and (COMMAND.match(line) or column.end() > width // 2):
            found += [line] if len(line) <= width else [column[0].rstrip(), *fill(" " * 8 + line[column.end() :])]
        elif column:  # its second column goes on in lines that begin there
            blank = " " * column.end()
            while lines and lines[0].startswith(blank) and not lines[0][len(blank) :].startswith(" "):
                line += " " + lines.pop(0).strip()
            found += fill(line[column.end() :], initial_indent=column[0], subsequent_indent=blank)
        elif not line.strip() or (COMMAND.match(line) and line[-1] not in ".?,"):
            found.append(line)
        elif line[0] == " ":
            blank = " " * (len(line) - len(line.lstrip()))
            found += fill(line.strip(), initial_indent=blank, subsequent_indent=blank + "    ")
        else:
            while lines and lines[0].strip() and lines[0][0] != " " and not FIRST_COLUMN.match(lines[0]):
                if COMMAND.match(lines[0]):
                    break
                line += " " + lines.pop(0)
            found += fill(line)
    return found


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations; a wrong option or choice gets a "did you mean". instead: what is said here in
    place of an option that other commands have."""

    def __init__(self, instead: Mapping[str, str] | None = None, **kwargs):
        self.instead = instead or {}
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", Help)
        kwargs.setdefault("epilog", EXIT_CODES)
        super().__init__(**kwargs)
        # A variable that is not set (--out "$DIR") must not mean the folder one is in, or everything.
        self.register("type", None, _not_empty)
        self.register("type", Path, lambda text: Path(_not_empty(text)))

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        for option in OUTPUTS:
            where = getattr(found, option, None)
            if isinstance(where, Path) and {where.name, Path(os.path.realpath(where)).name} & {*OF_A_RUN}:
                self.error(f"--{option} {where}: a run's own file has this name; choose another")
        return found, rest

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message}{self._hint(message)} ({self.prog} --help)\n")

    def _hint(self, message: str) -> str:
        options = [o for action in self._actions for o in action.option_strings]
        if found := re.search(r"unrecognized arguments: (-\S+)", message):
            word = found[1].split("=")[0]
            return f"; here it is {self.instead[word]}" if word in self.instead else did_you_mean(word, options)
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return did_you_mean(found[1], re.findall(r"[\w.\-/]+", found[2]))
        return ""


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


# --- types of arguments ---


def count(text: str) -> int:
    """A whole number above 0."""
    return _whole(text, 1, "a whole number above 0")


def whole_from_zero(text: str) -> int:
    """How often or how many, 0 for never or none."""
    return _whole(text, 0, "a whole number from 0")


def seed(text: str) -> int:
    """What every generator of random numbers here takes."""
    return _whole(text, 0, "a whole number from 0 to 2147483647", 2**31 - 1)


def cores(text: str) -> int:
    """A number of threads; more than there are cores would only wait for each other, or never be made."""
    most = os.cpu_count() or 1
    return _whole(text, 1, f"a whole number from 1 to {most}, the cores of this machine", most)


def _whole(text: str, least: int, what: str, most: float = math.inf) -> int:
    with contextlib.suppress(ValueError):
        if least <= int(text) <= most:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not {what}")


def above_zero(text: str) -> float:
    """A finite number above 0: seconds, a learning rate."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def from_zero(text: str) -> float:
    """A finite number from 0: a decay, a temperature."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean "attention"?' or nothing."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def several(number: int, word: str) -> str:
    """1 step; 9,397 steps."""
    return f"{number:,} {word}{'s' * (number != 1)}"


def choose(word: str, known: Iterable[str], what: str) -> str:
    """`word` where it is known; else a CannotGoOn that says what is."""
    known = list(known)
    if word in known:
        return word
    raise CannotGoOn(f"unknown {what} {word!r}{did_you_mean(word, known)} (known: {', '.join(known)})", USAGE)


def choose_all(text: str, known: Iterable[str], what: str) -> list[str]:
    """The words of a comma list, each once, and each as in `choose`; a pattern (cuda.*) is all that fit it."""
    known = list(known)
    words = [word.strip() for word in text.split(",")]
    fitting = {word: fnmatch.filter(known, word) if is_pattern(word) else [] for word in words}
    return list(dict.fromkeys(n for word, fit in fitting.items() for n in fit or [choose(word, known, what)]))


def is_pattern(word: str) -> bool:
    return any(sign in word for sign in "*?[")


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command line's main(); turn the errors a user can act on into one line and an exit code."""
    _speak_utf8()
    _compute_as_named()
    nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere  # they are None after `>&-`
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that has no "±"
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # not under nohup
            signal.signal(number, _interrupt)
    try:
        code = _run(main)
    except SystemExit as stop:  # argparse's
        code = stop.code if isinstance(stop.code, int) else OK if stop.code is None else FAILED
    finally:
        # Nothing is left to be kept. Another Ctrl-C now ends the process, and no traceback of its exit is seen.
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in ENDING:
            if signal.getsignal(number) in (_interrupt, signal.default_int_handler):
                signal.signal(number, signal.SIG_DFL)
    _leave(code)


def _speak_utf8() -> None:
    """Begin again in UTF-8 mode where the locale is another one: sources and records are UTF-8 whatever it says, here
    and in all processes that this one starts. What is printed stays in the letters that the terminal has."""
    if sys.flags.utf8_mode or codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8":
        return
    letters = getattr(sys.stdout, "encoding", None) or "ascii"
    os.environ.setdefault("PYTHONIOENCODING", f"{letters}:replace")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


# With these a library does something else than what a row says of it: torch.compile, which then compiles nothing, and
# products in fp32, which oneDNN then takes in bf16 (advice for PyTorch on ARM), those of accuracy's yard, too.
NOT_AS_NAMED = {
    "TORCH_COMPILE_DISABLE": "torch.compile would compile nothing",
    "TORCHDYNAMO_DISABLE": "torch.compile would compile nothing",
    "TORCHDYNAMO_SUPPRESS_ERRORS": "what torch.compile cannot compile would run as it is",
    "DNNL_DEFAULT_FPMATH_MODE": "fp32 would be computed in less",
    "ONEDNN_DEFAULT_FPMATH_MODE": "fp32 would be computed in less",
}


def _compute_as_named() -> None:
    """Take variables of `NOT_AS_NAMED` out of the environment, before a library reads them, and say so."""
    for name, why in NOT_AS_NAMED.items():
        value = os.environ.pop(name, "")
        if value.lower() not in ("", "0", "false", "strict") and sys.stderr:
            with contextlib.suppress(OSError):
                say(f"{name}={value} is not obeyed here: {why}")


def _leave(code: int) -> NoReturn:
    """Ends the process after what is registered for its end, and without taking torch apart, which is half a second.
    As ever where the process goes on with another command, or a profiler or a tracer has yet to say what it saw."""
    if lives_on or sys.getprofile() or sys.gettrace() or _monitored():
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            pass
        except OSError:
            code = code or FAILED
    os._exit(code)


lives_on = False  # set where commands run one after the other in one process


def _monitored() -> bool:
    """Whether a tool of Python 3.12's monitoring looks on, as cProfile does."""
    monitoring = getattr(sys, "monitoring", None)
    return monitoring is not None and any(monitoring.get_tool(number) for number in range(6))


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # how a person, a time limit and a closed terminal end us
IMPORT_SECONDS = 0.02  # between looks whether an import is over


def _interrupt(_: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt; during an import just after it, for there are libraries that swallow it there and then go on
    with half of themselves."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame is None:
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS)


def _run(main: Callable[[], int]) -> int:
    """The exit code of main(), after whatever is to be said of its end."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except CannotGoOn as error:
        return _end(str(error), error.code)
    except KeyboardInterrupt as stop:
        where = f" in {stop}" if str(stop) else ""
        print(f"interrupted; what was recorded so far is kept{where}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `… | head`
        _forget_stdout()
        return OK
    except SystemExit as stop:  # argparse's, or rich's own answer to a broken pipe
        if isinstance(stop.__context__, BrokenPipeError):
            return OK
        raise
    except OSError as error:
        _forget_stdout()  # it may be the one that is full
        return _end(cannot(error), FAILED)
    except MemoryError as error:
        return _end(f"not enough memory: {error or 'take smaller shapes'}", FAILED)


def _end(message: str, code: int) -> int:
    one_line = " ".join(message.split())  # of files and folders whose text may steer a terminal
    print("error: " + "".join(c if c.isprintable() else "\ufffd" for c in one_line), file=sys.stderr)
    return code


def _forget_stdout() -> None:
    """Have what is still buffered go nowhere: the interpreter would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


WAYS_OUT = {
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room, or choose another place",
    errno.EFBIG: "make room, or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "choose another place, or get the right to it",
    errno.EPERM: "choose another place, or get the right to it",
    errno.EEXIST: "a file lies where a folder is to be: choose another place",
    errno.ENOTDIR: "a file lies where a folder is to be: choose another place",
    errno.EISDIR: "a folder lies where a file is to be: choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def way_out(error: OSError) -> str:
    """What to do about it, in brackets after a blank; "" where that is not known."""
    return f" ({WAYS_OUT[error.errno]})" if error.errno in WAYS_OUT else ""


def cannot(error: OSError) -> str:
    """What the system refused, of which file, and the way out where it is known."""
    from kernels import cache_dir

    where = f"{error.filename}: " if error.filename else ""
    way = way_out(error)
    with contextlib.suppress(OSError):
        if cache_dir() in (Path(str(error.filename)), *Path(str(error.filename)).parents):
            way = " (the cache: set LAYERBENCH_CACHE to another folder)"
    return f"{where}{error.strerror or error}{way}"


def no_such(path: Path, what: str = "file or folder", way: str = "") -> str:
    """What is said of a path that was given, and is not what was asked for: not there at all, or of the other kind.
    way: what to do about it."""
    if path.is_symlink() and not path.exists():
        found = f"no such {what} (a link that leads nowhere)"
    elif path.exists() and what != "file or folder":
        found = f"a {'folder' if path.is_dir() else 'file'}, no {what}"
    else:
        found = f"no such {what}"
    return f"{path}: {found}" + (f"; {way}" if way else "")


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started meanwhile never see Ctrl-C, which a terminal sends to all: it is for this one."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # to start it later would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on one line, the last of stdout."""
    print(json.dumps(document, default=str), flush=True)


def say(text: str, quiet: bool = False) -> None:
    """Progress for people: on stderr, so that stdout stays clean for tables and JSON."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)
