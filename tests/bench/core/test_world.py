"""The state of the world: each change is told in words, what is set and reset too; of honest calls nothing."""

import _thread
import builtins
import contextlib
import ctypes
import fcntl
import functools
import gc
import inspect
import multiprocessing.util
import os
import platform
import random
import re
import resource
import secrets
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from bench import HOME
from bench.core import arena, deeds, owners, process, replaced, variants, world
from bench.core.arena import Arena, workspace_of
from bench.core.case import cases_of, draw
from bench.core.deeds import Watch
from bench.core.world import cpu_over_wall, difference, from_outside, late_work, settled, take
from bench.machine import facts
from kernels import put
from kernels.cpu import Kernel

ALL = variants.discover()
A, OUT = torch.ones(256), torch.empty(256)


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """This process guarded for one test; monkeypatch puts back what was there."""
    monkeypatch.setattr(replaced, "REPLACED", tuple)
    setters = tuple(n for n in dir(torch._C) if n.startswith("_set_"))
    for module, names in [*deeds.PLACES.items(), (torch._C, setters)]:
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name))
    for owner, name in deeds.OPENERS:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for _, _, prop in deeds._properties():
        monkeypatch.setattr(prop, "setter", prop.setter)
    deeds.guard()


# --- what is left changed ---


def denormals():
    assert torch.set_flush_denormal(True)


# What is changed, how it is undone, and a word of the evidence.
CHANGES: dict[str, tuple[Callable, Callable, Callable]] = {
    "threads": (
        lambda: torch.set_num_threads(torch.get_num_threads() % 2 + 1),
        lambda n: torch.set_num_threads(n),
        torch.get_num_threads,
    ),
    "dtype": (lambda: torch.set_default_dtype(torch.float64), torch.set_default_dtype, torch.get_default_dtype),
    "denormals": (denormals, lambda _: torch.set_flush_denormal(False), lambda: None),
    "nice": (lambda: os.nice(1), lambda was: os.setpriority(os.PRIO_PROCESS, 0, was), lambda: os.getpriority(0, 0)),
    "affinity": (
        lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        lambda was: os.sched_setaffinity(0, was),
        lambda: os.sched_getaffinity(0),
    ),
    "scheduler": (
        lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        lambda _: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)),
        lambda: None,
    ),
    "timers": (
        lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 1000),
        lambda _: signal.setitimer(signal.ITIMER_VIRTUAL, 0),
        lambda: None,
    ),
    "signal handlers (SIGALRM)": (
        lambda: signal.signal(signal.SIGALRM, lambda *_: None),
        lambda was: signal.signal(signal.SIGALRM, was),
        lambda: signal.getsignal(signal.SIGALRM),
    ),
    "garbage collection": (gc.disable, lambda _: gc.enable(), lambda: None),
    "switch interval": (lambda: sys.setswitchinterval(0.5), sys.setswitchinterval, sys.getswitchinterval),
    "umask": (lambda: os.umask(0o77), os.umask, lambda: 0o22),
    "limits": (
        lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
        lambda was: resource.setrlimit(resource.RLIMIT_NOFILE, was),
        lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
    ),
    "environment": (
        lambda: os.environ.update(OMP_DYNAMIC="true"),
        lambda _: os.environ.pop("OMP_DYNAMIC"),
        lambda: None,
    ),
    "profile function": (
        lambda: threading.setprofile(lambda *_: None),
        lambda _: threading.setprofile(None),  # type: ignore[arg-type]
        lambda: None,
    ),
    "mkldnn": (
        lambda: torch._C._set_mkldnn_enabled(False),
        torch._C._set_mkldnn_enabled,
        torch._C._get_mkldnn_enabled,
    ),
    "fp16 reductions of cublas": (
        lambda: torch._C._set_cublas_allow_fp16_reduced_precision_reduction(False),
        lambda _: torch._C._set_cublas_allow_fp16_reduced_precision_reduction(True),
        lambda: None,
    ),
    "random state": (lambda: torch.rand(1), torch.set_rng_state, torch.get_rng_state),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_left_changed_is_told(what):
    change, undo, value = CHANGES[what]
    before, was = take(), value()
    change()
    try:
        told = difference(before, take())
    finally:
        undo(was)
    assert what in told and len(told) < 400
    assert what not in difference(before, take()), "and undone it is no change"


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (time, "perf_counter_ns"),
        (time, "time"),
        (time, "monotonic"),
        (os, "write"),
        (torch, "allclose"),
        (torch.Tensor, "copy_"),
        (torch.Tensor, "__eq__"),
        (torch.Tensor, "__rsub__"),
        (arena, "len"),
        (arena, "checksum"),
        (Arena, "reset"),
        (world, "take"),
        (threading, "active_count"),
        (builtins, "iter"),
        (secrets, "randbits"),
        (random.Random, "getrandbits"),
        (contextlib.nullcontext, "__exit__"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_function_of_the_harness_that_is_replaced_is_told(owner, name, monkeypatch):
    before = take()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *_, **__: 0, raising=False)
        after = _state_of_functions()
    assert name in difference({"replaced functions": before["replaced functions"]}, after)


def _state_of_functions() -> world.State:
    return {"replaced functions": replaced.REPLACED()}


class OtherModule(ModuleType):
    pass


class OtherDict(dict):
    pass


class Equal:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


def closed_over(patch):
    cell = next(c for c in (process.with_variables.__closure__ or ()) if callable(c.cell_contents))
    was = cell.cell_contents
    cell.cell_contents = len
    return lambda: setattr(cell, "cell_contents", was)


def class_of_a_module(patch):
    zlib.__class__ = OtherModule
    return lambda: setattr(zlib, "__class__", ModuleType)


OTHERWISE: dict[str, Callable] = {
    "the class of zlib": class_of_a_module,
    "what bench.core.process.with_variables closes over": closed_over,
    "sys.modules[zlib]": lambda patch: patch.setitem(sys.modules, "zlib", OtherModule("zlib")),
    "threading._active": lambda patch: patch.setattr(threading, "_active", OtherDict(vars(threading)["_active"])),
    "bench.core.deeds.EVENTS": lambda patch: patch.setattr(deeds, "EVENTS", []),
    "bench.core.arena.Fenced.view": lambda patch: patch.setattr(arena.Fenced, "view", property(id), raising=False),
    "bench.core.arena.Probe.__del__": lambda patch: patch.setattr(arena.Probe, "__del__", id, raising=False),
    "bench.core.arena.Arena.probe": lambda patch: patch.setattr(Arena, "probe", Equal()),
    "bench.core.world.take": lambda patch: patch.setattr(world, "take", lambda deep=False: {}),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_works_when_the_harness_looks_at_it_is_told(what, monkeypatch):
    """By the function that is held elsewhere, too: others could be replaced by ones that tell nothing."""
    told = replaced.sealed()
    assert told() == ()
    with monkeypatch.context() as patch:
        back = OTHERWISE[what](patch)
        found = told()
        if what.startswith(("the class", "what")):
            back()
    assert what in found and told() == ()


def test_a_field_that_is_none_of_pythons_business_hides_nothing(monkeypatch):
    """What Python itself keeps at a class, and a name that no object of it has."""
    monkeypatch.setattr(arena.Probe, "__slotnames__", [], raising=False)
    monkeypatch.setattr(arena.Probe, "a_name_of_its_own", 1, raising=False)
    assert replaced.sealed()() == ()


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


def test_settings_that_contradict_each_other_are_told():
    before, was = take(), torch._C._get_fp32_precision_getter("mkldnn", "matmul")
    torch._C._set_fp32_precision_setter("mkldnn", "matmul", "bf16")
    told = difference(before, take())
    torch._C._set_fp32_precision_setter("mkldnn", "matmul", was)
    assert "fp32 precision" in told


def test_denormals_in_torchs_worker_threads_are_looked_at():
    assert take(deep=True)["denormals are kept by torch's threads"] is True
    torch.set_flush_denormal(True)
    try:
        assert take(deep=True)["denormals are kept by torch's threads"] is False
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="sets x86's MXCSR")
@pytest.mark.parametrize("thread", [1, 3])
def test_denormals_are_looked_at_in_every_one_of_torchs_threads(thread):
    threads, flush = torch.get_num_threads(), Kernel("flush_in_a_thread.cpp", "flush_in_a_thread")
    torch.set_num_threads(4)
    try:
        assert take(deep=True)["denormals are kept by torch's threads"] is True
        flush(torch.zeros(1), thread, 4, True)
        assert take(deep=True)["denormals are kept by torch's threads"] is False
    finally:
        flush(torch.zeros(1), thread, 4, False)
        torch.set_num_threads(threads)


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


# --- work that is not there yet ---


def test_a_thread_that_works_on_is_told():
    before = settled(take())
    enough = threading.Event()
    thread = threading.Thread(target=enough.wait)
    thread.start()
    told = late_work(before, take())
    enough.set()
    thread.join()
    assert "Python threads" in told and "native threads" in told
    until = time.monotonic() + 10  # Python has joined it a moment before the system has
    while late_work(before, take()) and time.monotonic() < until:
        time.sleep(0.01)
    assert late_work(before, take()) == ""


def test_a_timer_that_will_ring_is_told():
    before = take()
    signal.setitimer(signal.ITIMER_VIRTUAL, 1000)
    told = late_work(before, take())
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    assert "timers" in told


def test_a_child_that_works_on_is_told():
    before = settled(take())
    others = before["child processes"]  # a test that ran in this process before may have left some
    assert isinstance(others, int)
    child = subprocess.Popen(["sleep", "30"])
    told = late_work(before, take())
    child.kill()
    child.wait()
    assert f"child processes: {others} before, {others + 1} after" in told


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


def test_the_direction_of_rounding_is_looked_at():
    library = ctypes.CDLL("libm.so.6")
    before = take()
    for direction in (0x400, 0x800, 0xC00):  # down, up, towards zero: of x86-64
        library.fesetround(direction)
        after = take()
        library.fesetround(0)
        assert "rounding went from" in difference(before, after)


def test_who_leaves_the_group_that_it_is_ended_with_is_told():
    """In a fork, for there is no way back."""
    reads, writes = os.pipe()
    if os.fork() == 0:
        before = take()
        os.setpgid(0, 0)
        os.write(writes, difference(before, take()).encode())
        os._exit(0)
    os.wait()
    assert b"process group went from" in os.read(reads, 1000)


def test_a_stream_that_is_sent_elsewhere_is_told():
    before, kept, other = take(), os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(other, 2)
    after = take()
    os.dup2(kept, 2)
    for number in (kept, other):
        os.close(number)
    assert "stdout and stderr went from" in difference(before, after)


def test_a_launcher_may_build_and_lock_while_a_call_is_watched(monkeypatch):
    monkeypatch.setattr(owners, "trusted", lambda file: True)
    with Watch() as watch:
        subprocess.run(["true"])
        _locked(HOME / "pyproject.toml")
    assert watch.evidence() == ""


def test_a_tool_of_sys_monitoring_is_told(monkeypatch):
    """Python 3.12 has it; a made-up one stands for it here."""
    tools: dict[int, str] = {1: "coverage"}
    monkeypatch.setattr(world, "MONITORING", SimpleNamespace(get_tool=tools.get))
    before = take()
    tools[4] = "profiler"
    assert "monitoring tools went from None to profiler" in difference(before, take())


def test_what_python_and_packages_do_for_themselves_is_no_deed(monkeypatch):
    monkeypatch.setattr(deeds, "DONE", {})
    before = take()
    namedtuple("Pair", "a b")
    dataclass(type("Point", (), {"__annotations__": {"x": int}}))
    compile("1", "somewhere", "eval")
    torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
    assert difference({world.DEEDS: before[world.DEEDS]}, take()) == ""


# --- more cores than given ---


def test_cores_beyond_those_given_are_told():
    assert "2.0 cores" in cpu_over_wall([2e-3] * 9, [1e-3] * 9, threads=1)
    assert "16.0 cores" in cpu_over_wall([16e-3] * 9, [1e-3] * 9, threads=4)


def test_a_pool_that_still_spins_is_no_evidence():
    assert cpu_over_wall([1.02e-3] * 9, [1e-3] * 9, threads=1) == ""
    spinning = [7e-3] * 9, [1e-3] * 9
    assert cpu_over_wall(*spinning, threads=4, runtimes=2) == "", "four threads, and three of torch's own that spin"
    assert "7.0 cores" in cpu_over_wall(*spinning, threads=4, runtimes=1)


def test_openmp_runtimes_are_counted(monkeypatch):
    assert facts.openmp_runtimes() >= 1, "torch's"
    monkeypatch.setattr(facts, "mapped", lambda pid: {"/a/libgomp.so.1", "/b/libgomp-1234.so.1.0.0", "/c/libm.so.6"})
    assert facts.openmp_runtimes() == 2


def test_few_or_short_calls_are_no_evidence():
    assert cpu_over_wall([9e-3] * 7, [1e-3] * 7, threads=1) == ""
    assert cpu_over_wall([90e-6] * 50, [10e-6] * 50, threads=1) == "", "the clock's own grain"
    assert cpu_over_wall([9.0, *[1e-3] * 20], [1e-3] * 21, threads=1) == "", "one call is no rule"


# --- from outside ---


def test_a_childs_scheduling_is_read_from_outside():
    code = "import os, sys; os.nice(3); os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"
    code += "; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        before = from_outside(os.getpid())
        assert child.stdout and child.stdin
        child.stdout.readline()
        told = difference(before, from_outside(child.pid))
        child.stdin.close()
    assert "scheduler" in told and "SCHED_BATCH" in told and "nice" in told


def test_a_process_that_is_gone_tells_nothing():
    assert from_outside(2**22 + 5) == {} and difference(from_outside(os.getpid()), {}) == ""


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


def test_a_variants_own_library_is_not():
    variant = variants.find(ALL, "residual", "cpu.simd")
    if reason := variants.unavailable(variant, "cpu", "fp32"):
        pytest.skip(reason)
    deeds.LOADED.clear()
    _call(variant, "forward")()
    assert deeds.LOADED == []


# --- honest calls ---


def _call(variant: variants.Variant, phase: str):
    """A call of the variant on its layer's first case."""
    module, case = variant.load(), next(iter(cases_of(variant.layer, phase, "fp32", [0])))
    memory = Arena(case, "cpu", workspace_of(module, case))
    memory.load(draw(case))
    memory.reset()
    return lambda: memory.call(getattr(module, phase))


HONEST = [
    *[("residual", "cpu.simd"), ("attention", "cpu.flash"), ("layernorm", "cpu.simd"), ("adamw", "cpu.naive")],
    *[
        ("residual", "torch.eager"),
        ("attention", "torch.eager"),
        ("attention", "torch.sdpa_flash"),
        ("adamw", "torch.eager"),
    ],
]


@pytest.mark.parametrize(("layer", "name"), HONEST)
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_honest_calls_change_nothing(layer, name, phase):
    variant = variants.find(ALL, layer, name)
    if not variant.has(phase):
        pytest.skip("has no backward")
    if reason := variants.unavailable(variant, "cpu", "fp32"):
        pytest.skip(reason)
    call = _call(variant, phase)
    before = take()
    call()
    assert difference(settled(before), take()) == "", "not even the first one, which may compile"
    before = settled(before)
    with Watch() as watch:
        for _ in range(3):
            call()
    after = take()
    assert (watch.evidence(), difference(before, after), late_work(before, after)) == ("", "", "")


@pytest.mark.slow
def test_a_compiler_at_work_changes_nothing():
    variant = variants.find(ALL, "gelu", "torch.compile")
    if reason := variants.unavailable(variant, "cpu", "fp32"):
        pytest.skip(reason)
    call = _call(variant, "forward")
    before = take()
    call()
    assert difference(settled(before), take()) == ""
    before = settled(before)
    with Watch() as watch:
        call()
    assert (watch.evidence(), difference(before, take())) == ("", "")


def test_taking_it_is_cheap():
    took = []
    for _ in range(30):
        start = time.perf_counter()
        take()
        took.append(time.perf_counter() - start)
    assert min(took) < 3e-3, "0.4 ms on a quiet core: it runs around every turn"


def test_to_look_at_torchs_threads_is_no_change_of_their_number():
    """The first look starts them, where nothing large was computed before."""
    code = "import torch; torch.set_num_threads(2); from bench.core import world; w = world.take"
    code += "; print(w(deep=True)[world.POOLS] == w(deep=True)[world.POOLS])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HOME)
    assert done.stdout == "True\n", done.stdout + done.stderr


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
