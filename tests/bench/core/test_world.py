"""The state of the world: each change is told in words, what is set and reset too; of honest calls nothing."""

import ctypes
import gc
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from bench import HOME
from bench.core import deeds, variants, world
from bench.core.arena import Arena, workspace_of
from bench.core.case import cases_of, draw
from bench.core.deeds import Watch
from bench.core.world import cpu_over_wall, difference, from_outside, late_work, settled, take
from bench.machine import facts
from kernels.cpu import Kernel

pytestmark = pytest.mark.usefixtures("guarded")
ALL = variants.discover()
A, OUT = torch.ones(256), torch.empty(256)


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


def test_a_tool_of_sys_monitoring_is_told(monkeypatch):
    """Python 3.12 has it; a made-up one stands for it here."""
    tools: dict[int, str] = {1: "coverage"}
    monkeypatch.setattr(world, "MONITORING", SimpleNamespace(get_tool=tools.get))
    before = take()
    tools[4] = "profiler"
    assert "monitoring tools went from None to profiler" in difference(before, take())


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


def test_a_variants_own_library_is_not():
    variant = variants.find(ALL, "residual", "cpu.simd")
    if reason := variants.unavailable(variant, "cpu", "fp32"):
        pytest.skip(reason)
    deeds.LOADED.clear()
    _call(variant, "forward")()
    assert deeds.LOADED == []


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
