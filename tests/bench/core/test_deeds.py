"""What is set and set back while a call is watched, and what a variant's own file does at any time."""

import _thread
import contextlib
import ctypes
import fcntl
import functools
import gc
import inspect
import multiprocessing.util
import os
import re
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import HOME
from bench.core import arena, deeds, owners, world
from bench.core.deeds import Watch
from bench.core.world import difference, settled, take
from kernels import put

pytestmark = pytest.mark.usefixtures("guarded")
A, OUT = torch.ones(256), torch.empty(256)


def test_notes_that_are_taken_away_are_told():
    before = take()
    deeds._note("something")
    deeds.DONE.clear()
    assert "notes of what its own code did" in difference(before, take())


def test_its_code_replaced_in_place_is_told():
    def other(value):
        return 0

    was = arena.checksum.__code__
    with Watch() as watch:
        arena.checksum.__code__ = other.__code__
    arena.checksum.__code__ = was
    assert "__code__ of checksum" in watch.evidence()


# --- what is set and set back ---


def threads_inside():
    torch.set_num_threads(2)
    torch.add(A, A, out=OUT)
    torch.set_num_threads(torch.get_num_threads())


def in_a_thread():
    thread = threading.Thread(target=lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)))
    thread.start()
    thread.join()


def frozen():
    gc.freeze()
    gc.unfreeze()


SET_AND_RESET: dict[str, Callable] = {
    "set_num_threads(2)": threads_inside,
    "set_num_threads": lambda: list(map(torch.set_num_threads, [torch.get_num_threads()])),
    "set_flush_denormal": lambda: functools.partial(torch.set_flush_denormal, False)(),
    "matmul_precision": lambda: torch.set_float32_matmul_precision(torch.get_float32_matmul_precision()),
    "default_dtype": lambda: torch.set_default_dtype(torch.float32),
    "deterministic": lambda: torch.use_deterministic_algorithms(False),
    "mkldnn": lambda: setattr(torch.backends.mkldnn, "enabled", True),
    "cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", False),
    "tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", False),
    "sched_setaffinity": in_a_thread,
    "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0)),
    "setitimer": lambda: signal.setitimer(signal.ITIMER_PROF, 0),
    "alarm": lambda: signal.alarm(0),
    "signal": lambda: signal.signal(signal.SIGUSR1, signal.getsignal(signal.SIGUSR1)),
    "setswitchinterval": lambda: sys.setswitchinterval(sys.getswitchinterval()),
    "setprofile": lambda: sys.setprofile(sys.getprofile()),
    "gc.freeze": frozen,
    "start": lambda: threading.Thread(target=lambda: None).start(),
    "start_new_thread": lambda: _thread.start_new_thread(lambda: None, ()),
    "Popen": lambda: subprocess.run(["true"]),
    "kill": lambda: os.kill(os.getpid(), 0),
    "dlpack": lambda: np.from_dlpack(OUT),
    "to_dlpack": lambda: torch.utils.dlpack.to_dlpack(OUT),
    "setrlimit": lambda: resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)),
}


@pytest.mark.parametrize("what", SET_AND_RESET)
def test_what_is_set_and_reset_during_a_call_is_told(what):
    SET_AND_RESET[what]()
    with Watch() as watch:
        SET_AND_RESET[what]()
    assert what in watch.evidence() and len(watch.evidence()) < 400


def test_a_watch_tells_its_own_time_only():
    torch.set_num_threads(torch.get_num_threads())
    with Watch() as first:
        pass
    with Watch() as second:
        gc.disable()
    gc.enable()
    assert first.evidence() == "" and "disable" in second.evidence()


# --- what a variant's own file does, its first call included ---


def by_raw_thread():
    _thread.start_new_thread(lambda: None, ())


def by_pool():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(len, ())


def _renamed(to: Path) -> None:
    """A rename that fails is one that was tried."""
    with contextlib.suppress(OSError):
        os.rename("/proc/self/nothing", to)


def _locked(file: Path) -> None:
    with open(file) as held:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _failing(write: Callable, *arguments: object) -> None:
    """To write a file where there is no folder for it is to try."""
    with contextlib.suppress(OSError, RuntimeError, sqlite3.Error):
        write(*arguments)


DEEDS: dict[str, Callable] = {
    "a thread's start": by_raw_thread,
    "a thread's start ": by_pool,
    "sys._getframe": lambda: sys._getframe(0),
    "sys._getframe ": inspect.stack,
    # Of the youngest only: in a process that has run a thousand tests, all objects include some that end meanwhile.
    "gc.get_objects": lambda: gc.get_objects(generation=0),
    "gc.get_referrers": lambda: gc.get_referrers(A),
    "sys._current_frames": sys._current_frames,
    "os.kill": lambda: os.kill(os.getpid(), 0),
    "os.sched_setaffinity of another process": lambda: os.sched_setaffinity(
        os.getppid(), os.sched_getaffinity(os.getppid())
    ),
    "signal.pidfd_send_signal of another process": lambda: signal.pidfd_send_signal(os.pidfd_open(os.getpid()), 0),
    "torch.library to replace operators of aten": lambda: torch.library.Library("aten", "IMPL"),
    "open(/proc/": lambda: open(f"/proc/{os.getppid()}/stat").close(),
    "open(/proc/self": lambda: open("/proc/self/mem", "rb").close(),
    "open to change pyproject.toml": lambda: open(HOME / "pyproject.toml", "a").close(),
    "os.rename to change nothing, which is not its own, os.rename to change later.pth": lambda: _renamed(
        HOME / "results" / "later.pth"
    ),
    "__code__ of": lambda: setattr(by_pool, "__code__", by_pool.__code__),
    "subprocess.Popen": lambda: subprocess.run(["true"]),
    "os.system": lambda: os.system("true"),
    "a program's start": lambda: os.waitpid(multiprocessing.util.spawnv_passfds(b"/bin/true", [b"true"], ()), 0),
    "fcntl.flock": lambda: _locked(HOME / "pyproject.toml"),
    "os.chmod to change pyproject.toml": lambda: os.chmod(
        HOME / "pyproject.toml", stat.S_IMODE((HOME / "pyproject.toml").stat().st_mode)
    ),
    # By others' hands.
    "open to change records.jsonl": lambda: _failing(torch.save, {}, HOME / "nowhere" / "records.jsonl"),
    "open to change later.pth": lambda: _failing(torch.from_file, str(HOME / "nowhere" / "later.pth"), True, 4),
    "open to change env.json": lambda: _failing(np.savetxt, HOME / "nowhere" / "env.json", [0.0]),
    "open to change a.db": lambda: _failing(sqlite3.connect, HOME / "nowhere" / "a.db"),
}


@pytest.mark.parametrize("what", DEEDS)
def test_a_deed_of_a_first_call_is_not_settled(what, monkeypatch):
    monkeypatch.setattr(deeds, "DONE", {})
    before = take()
    DEEDS[what]()
    assert f"its own code called {what.strip()}" in difference(settled(before), take())


def test_files_of_its_own_are_no_deed_and_yards_are(monkeypatch, tmp_path):
    monkeypatch.setattr(deeds, "DONE", {})
    monkeypatch.setattr(deeds, "MADE", set())
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    before, mine, known = take(), tmp_path / "mine", tmp_path / "records.jsonl"
    for _ in range(2):
        mine.write_text("once, and again")
    open("/proc/cpuinfo").close()
    open(os.devnull, "w").close()
    mine.unlink()
    with tempfile.TemporaryDirectory() as folder:  # is removed by names within open folders
        Path(folder, "inside").mkdir()
        Path(folder, "inside", "mine").write_text("")
    for _ in range(2):
        put(tmp_path / "cache" / "of_mine" / "table.json", b"{}")
        torch.save({}, tmp_path / "cache" / "of_mine" / "table.pt")
    assert difference({world.DEEDS: before[world.DEEDS]}, take()) == ""
    subprocess.run(["touch", known])  # by another process
    known.write_text("{}")
    (tmp_path / "cache" / "yards").mkdir(parents=True)
    (tmp_path / "cache" / "yards" / "gelu.json").write_text("{}")
    told = difference({world.DEEDS: before[world.DEEDS]}, take())
    assert "open to change records.jsonl" in told and "open to change gelu.json" in told


def test_what_is_put_or_made_where_the_harness_looks_is_a_deed(monkeypatch, tmp_path):
    monkeypatch.setattr(deeds, "MADE", set())
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    for name in ("yards/gelu.jsonl", "cpu/residual-simd-0.so", "shards-1/train.bin", "step_times.json"):
        monkeypatch.setattr(deeds, "DONE", {})
        put(tmp_path / name, b"")
        assert "to change" in str(deeds.DONE), name
        (tmp_path / name).unlink()
        monkeypatch.setattr(deeds, "DONE", {})
        (tmp_path / name).touch()
        assert "to change" in str(deeds.DONE), name


def test_every_folder_that_the_harness_keeps_things_in_is_told_as_its_own():
    """By its name in `cache_dir() / "…"`."""
    sources = [p for folder in ("bench", "kernels") for p in (HOME / folder).rglob("*.py")]
    found = {m for p in sources for m in re.findall(r"cache_dir\(\) / f?\"([\w-]+)\"", p.read_text())}
    assert {"cpu", "yards", "resources"} <= found
    assert {n for n in found if n not in owners.OURS and not n.startswith(owners.OURS_BEGIN)} == set()


def test_where_packages_are_is_no_folder_of_that_name_and_no_variant():
    assert owners.trusted(torch.nn.__file__) and owners.trusted(np.__file__)
    assert not owners.trusted("/tmp/site-packages/torch/nn/__init__.py")
    plugin = Path(np.__file__).parents[1] / "a_plugin"
    assert owners.trusted(str(plugin / "helpers.py")) and not owners.trusted(str(plugin / "torch/residual/mine.py"))


def test_a_launcher_may_build_and_lock_while_a_call_is_watched(monkeypatch):
    monkeypatch.setattr(owners, "trusted", lambda file: True)
    with Watch() as watch:
        subprocess.run(["true"])
        _locked(HOME / "pyproject.toml")
    assert watch.evidence() == ""


def test_what_python_and_packages_do_for_themselves_is_no_deed(monkeypatch):
    monkeypatch.setattr(deeds, "DONE", {})
    before = take()
    namedtuple("Pair", "a b")
    dataclass(type("Point", (), {"__annotations__": {"x": int}}))
    compile("1", "somewhere", "eval")
    torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
    assert difference({world.DEEDS: before[world.DEEDS]}, take()) == ""


# --- libraries ---


def asks_ctypes(path: str | None, symbol: str | None = None) -> list[str]:
    deeds.LOADED.clear()
    library = ctypes.CDLL(path)
    if symbol:
        getattr(library, symbol)
    return deeds.LOADED[:]


def test_a_library_of_somebody_else_is_told(tmp_path):
    numpys = next(Path(np.__file__).parent.rglob("_multiarray_umath*.so"))
    assert asks_ctypes(str(numpys)) == [f"{numpys.name} by ctypes"]
    assert asks_ctypes(None, "sched_setaffinity") == ["sched_setaffinity by ctypes"]
    assert asks_ctypes("libm.so.6", "expf") == []


IMPORTS = """
import sys
from bench.core import deeds, world
deeds.guard()
sys.path.insert(0, sys.argv[1])
before = world.take()
import variant
print(world.difference(before, world.take()))
"""


def test_a_module_that_a_variant_is_the_first_to_import_is_none_of_its_deeds(tmp_path):
    """Python would write its bytecode, as it does unless told otherwise, beside the sources of whoever imported it."""
    (tmp_path / "variant.py").write_text("import shared_by_several\n")
    (tmp_path / "shared_by_several.py").write_text("SIZE = 1\n")
    (tmp_path / "temporary").mkdir()  # and not all of what is temporary here
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(HOME)}
    command = [sys.executable, "-c", IMPORTS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr
