"""A run's checkpoints: step-00000123/ with

    weights.safetensors     the weights, in the dtype that the run trains in, under the model's own names
    optimizer.safetensors   m.NAME, v.NAME and, below fp32, masters.NAME, in fp32
    state.json              step, model and its sizes, dtype, and the rest of the run's state
    whole.json              written last: size and CRC-32 of the others

A folder without whole.json, or with anything that it does not promise, is torn: `newest` names it and takes the one
before. Nothing here reads a pickle.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.checkpoints import KEEP_LAST
from bench.checkpoints.state import State, need_same_model, need_shapes
from bench.checkpoints.tensors import Image, checksum, read
from bench.cli import CannotGoOn, no_such
from bench.core.case import DTYPES
from bench.core.files import cannot_write, put
from reference.models.model import Model

FORMAT, VERSION = "layerbench checkpoint", 1
WEIGHTS, OPTIMIZER, REST, MARKER = "weights.safetensors", "optimizer.safetensors", "state.json", "whole.json"
FILES = (WEIGHTS, OPTIMIZER, REST)
NAME = re.compile(r"step-(\d{8,})")
WRITING = re.compile(r"\.step-\d{8,}\.(writing|replaced)")  # what a killed process leaves behind
NICE = 10  # of the thread that writes
# what a file of JSON may raise that is none of ours, however deep or strange it is
NO_MARKER = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

Torn = list[tuple[Path, str]]


def folder_of(step: int) -> str:
    return f"step-{step:08d}"


# --- writing ---


class Held:
    """A copy of a state in memory that is used again, as the files will be."""

    def __init__(self, state: State):
        self.weights, self.optimizer = Image(state.weights), Image(state.optimizer())
        self.step, self.model, self.rest = state.step, state.model, b""

    def fits(self, state: State) -> bool:
        return self.weights.fits(state.weights) and self.optimizer.fits(state.optimizer())

    def take(self, state: State) -> None:
        """Copy `state`. Raises TypeError where `rest` is not for JSON."""
        said = dict(step=state.step, model=state.model, dtype=state.dtype, rest=state.rest)
        self.rest = json.dumps(said, indent=1).encode()
        self.step, self.model = state.step, state.model
        self.weights.fill(state.weights)
        self.optimizer.fill(state.optimizer())

    def write(self, folder: Path) -> Path:
        """Write folder/step-…, whole or not at all. Raises DiskFull or CannotGoOn; what was there is then unchanged."""
        final = folder / folder_of(self.step)
        temporary = folder / f".{final.name}.writing"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._not_over_a_foreign_one(final)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            sums = {
                WEIGHTS: (self.weights.bytes, self.weights.write(temporary / WEIGHTS)),
                OPTIMIZER: (self.optimizer.bytes, self.optimizer.write(temporary / OPTIMIZER)),
                REST: (len(self.rest), zlib.crc32(self.rest)),
            }
            put(temporary / REST, self.rest)
            sync(temporary)
            marker = dict(format=FORMAT, version=VERSION, step=self.step, files=sums)
            with _in_place(temporary, final):
                put(final / MARKER, json.dumps(marker).encode())
                sync(final)
            sync(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise cannot_write(final, error) from error
        return final

    def _not_over_a_foreign_one(self, final: Path) -> None:
        if not final.exists() or why_torn(final):
            return
        found = _said(final)["model"]
        if found != self.model:
            raise CannotGoOn(f"{final}: a checkpoint of {found.get('name')} is there, and stays; take another folder")


def save(folder: Path, state: State) -> Path:
    """Write folder/step-00000123/ and force it to disk. Raises DiskFull or CannotGoOn; nothing is then half written."""
    held = Held(state)
    held.take(state)
    return held.write(folder)


@contextlib.contextmanager
def _in_place(temporary: Path, final: Path) -> Iterator[None]:
    """A folder renamed. One that is there, of the same step, goes when the body is over, and comes back if it fails."""
    old = final.with_name(f".{final.name}.replaced")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    try:
        sync(final.parent)
        yield
    except OSError:
        shutil.rmtree(final, ignore_errors=True)
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync(folder: Path) -> None:
    """Force a folder's names to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to force
            raise
    finally:
        os.close(handle)


class Writer:
    """Writes checkpoints beside the training: `submit` copies and returns, a thread writes. Of one rank only.

    The newest `keep_last` stay, and those whose step is a multiple of `keep_every` (0: none). What else in the folder
    was written whole by this format goes, and nothing that was not. No more than one is being written at a time:
    `submit` waits for the one before. What went wrong with it is raised by the next `submit` or by `close`.

    Raises CannotGoOn where another process writes to the folder.
    """

    def __init__(self, folder: Path, keep_last: int = KEEP_LAST, keep_every: int = 0):
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last}: the newest is always kept")
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self.written: Path | None = None  # the newest that is whole
        self._held: Held | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however this process ends
        except OSError as error:
            os.close(self._lock)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise CannotGoOn(
                    f"{folder}: another process is writing checkpoints there; take another folder"
                ) from None
            # a file system without locks: then nobody is asked
        else:
            self._sweep()

    def reserve(self, state: State) -> None:
        """Allocate what `submit` copies to, and touch it, so that the first one costs no more than the others."""
        self._held = Held(state)
        self._held.take(state)

    def submit(self, state: State) -> None:
        """Copy a state and write it in the background. Raises what the one before ended with."""
        self._finish()
        if self._held is None or not self._held.fits(state):
            self._held = Held(state)
        self._held.take(state)
        self._thread = threading.Thread(target=self._write, args=(self._held,), name="checkpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for what is being written. Raises what it ended with. A second call does nothing."""
        try:
            self._finish()
        finally:
            self._held = None
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with (
            contextlib.suppress(CannotGoOn) if error else contextlib.nullcontext()
        ):  # the first error is the one to tell
            self.close()

    def _finish(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error:
            raise error

    def _write(self, held: Held) -> None:
        with contextlib.suppress(OSError, AttributeError):
            me = threading.get_native_id()  # Linux gives a thread its own priority: training comes first
            os.setpriority(os.PRIO_PROCESS, me, max(os.getpriority(os.PRIO_PROCESS, me), NICE))
        try:
            self.written = held.write(self.folder)
            self._prune(held.step)
        except Exception as error:
            self._error = error

    def _prune(self, newest: int) -> None:
        """Let go of old checkpoints: the marker first, so that one which is half gone counts as torn."""
        whole = [(step, path) for step, path in checkpoints(self.folder) if _sizes(path) is None]
        keep = {newest, *sorted(step for step, _ in whole)[-self.keep_last :]}
        for step, path in whole:
            if step not in keep and not (self.keep_every and step % self.keep_every == 0):
                with contextlib.suppress(OSError):
                    (path / MARKER).unlink()
                    shutil.rmtree(path)

    def _sweep(self) -> None:
        """Remove what killed writers left half written; one that was being replaced goes back to its place."""
        for path in self.folder.iterdir():
            if not WRITING.fullmatch(path.name):
                continue
            place = self.folder / path.name.removeprefix(".").rpartition(".")[0]
            if path.suffix == ".replaced" and _sizes(place) is not None:
                shutil.rmtree(place, ignore_errors=True)
                path.rename(place)
            else:
                shutil.rmtree(path, ignore_errors=True)


# --- reading ---


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of all that is named as one, whole or not, oldest first."""
    if not folder.is_dir():
        return []
    named = ((NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in named if match)


def newest(folder: Path, model: Model) -> tuple[Path | None, Torn]:
    """The newest whole checkpoint of `folder` (None: there is none), and the newer ones that are torn, each with why.

    Raises CannotGoOn where that one is of another model.
    """
    torn: Torn = []
    for _, path in reversed(checkpoints(folder)):
        if why := why_torn(path):
            torn.append((path, why))
        else:
            need_same_model(_said(path)["model"], model, path)
            return path, torn
    return None, torn


def why_torn(path: Path, files: Iterable[str] = FILES) -> str | None:
    """What a checkpoint lacks of what its marker promises, in a few words; None where it is whole.

    files: of which all is read; of the others only the size is looked at.
    """
    if why := _sizes(path):
        return why
    try:
        for name in files:
            if checksum(path / name) != _marker(path)["files"][name][1]:
                return f"{name} is not what was written (its CRC-32 differs)"
        said = _said(path)
        if said["step"] != _marker(path)["step"]:
            return f"{REST} is of another step"
    except (OSError, *NO_MARKER) as error:
        return f"cannot be read ({error})"
    return None


def _sizes(path: Path) -> str | None:
    """`why_torn` as far as names and sizes say."""
    try:
        marker = _marker(path)
    except FileNotFoundError:
        return f"{MARKER} is missing: it was not written to its end"
    except (OSError, *NO_MARKER) as error:
        return f"{MARKER} is damaged ({error})"
    name = path.resolve().name
    if NAME.fullmatch(name) and name != folder_of(marker["step"]):  # a copy may have a name of its own
        return f"{MARKER} is of step {marker['step']}"
    for name, (size, _) in marker["files"].items():
        try:
            found = (path / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} of {size:,} bytes"
    return None


def _marker(path: Path) -> dict[str, Any]:
    """The marker's contents. Raises OSError, or one of NO_MARKER for one that is none of ours."""
    marker = json.loads((path / MARKER).read_bytes())
    if marker["format"] != FORMAT or marker["version"] != VERSION:
        raise ValueError(f"{marker['format']!r}, version {marker['version']}; this program reads version {VERSION}")
    if marker["files"].keys() != set(FILES) or not isinstance(marker["step"], int):
        raise ValueError("it lists other files")
    for size, sum in marker["files"].values():
        if not isinstance(size, int) or not isinstance(sum, int):
            raise ValueError("a size or checksum is no number")
    return marker


def _said(path: Path) -> dict[str, Any]:
    return json.loads((path / REST).read_bytes())


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is one, whole or torn."""
    return (path / MARKER).exists() or (path / REST).exists() or NAME.fullmatch(path.name) is not None


def load(path: Path, model: Model, dtype: str | None = None, vocabulary: str | None = None) -> State:
    """A checkpoint, every file checked. Tensors are on the CPU.

    dtype, vocabulary: what the run has now; CannotGoOn, in one line, where the checkpoint says another of what is
    given, where it is torn or none, and where it is of another model.
    """
    if not path.is_dir():
        raise CannotGoOn(no_such(path, "checkpoint"))
    if why := why_torn(path):
        raise CannotGoOn(f"{path}: no whole checkpoint: {why}")
    said = _said(path)
    need_same_model(said["model"], model, path)
    if dtype and said["dtype"] != dtype:
        raise CannotGoOn(
            f"{path}: it was trained in {said['dtype']}, not in {dtype}; go on with --dtype {said['dtype']}"
        )
    known = said["rest"].get("vocabulary")
    if vocabulary and known and known != vocabulary:
        raise CannotGoOn(
            f"{path}: it was trained on another vocabulary ({known[:12]}, the data's is {vocabulary[:12]}): "
            "the same ids would mean other text"
        )
    state = _state(path, said)
    need_shapes(state, model, path)
    return state


def _state(path: Path, said: dict[str, Any]) -> State:
    kinds: dict[str, dict[str, Any]] = {"m": {}, "v": {}, "masters": {}}
    for full, tensor in read(path / OPTIMIZER).items():
        kind, _, name = full.partition(".")
        if kind not in kinds:
            raise CannotGoOn(f"{path / OPTIMIZER}: {full} is neither m, v nor a master")
        kinds[kind][name] = tensor
    if said["dtype"] not in DTYPES:
        raise CannotGoOn(f"{path}: unknown dtype {said['dtype']!r}")
    return State(
        step=said["step"],
        model=said["model"],
        dtype=said["dtype"],
        weights=read(path / WEIGHTS),
        masters=kinds["masters"] or None,
        m=kinds["m"],
        v=kinds["v"],
        rest=said["rest"],
    )


def model_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its model, as of `state.describe`, without a look at its tensors.

    Raises CannotGoOn where it is seen to be torn, or is none.
    """
    if why := why_torn(path, [REST]):
        raise CannotGoOn(f"{path}: no whole checkpoint: {why}")
    return _said(path)["model"]
