"""Whose code ran: what is not the variant's own is seen, whichever thread or back door it takes; the rest is free."""

import ctypes
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.dlpack import to_dlpack  # now, before any test has deeds.guard replace it

from bench.core import deeds, owners, variants, world
from bench.core.arena import Arena, workspace_of
from bench.core.case import cases_of, draw
from bench.trial import attest, ran
from bench.trial.attest import attested, judge_calls

ALL = variants.discover()
OWN = variants.find(ALL, "residual", "cpu.simd")
A, OUT = torch.ones(64), torch.empty(64)


def judged(call, variant=OWN):
    _, seen = attested(call)
    return judge_calls(variant, seen)


# --- what must be caught ---


def in_a_joined_thread():
    thread = threading.Thread(target=lambda: torch.add(A, A, out=OUT))
    thread.start()
    thread.join()


def with_modes_off():
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        torch.add(A, A, out=OUT)


def below_autograd():
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.aten.add.out(A, A, out=OUT)


def numpy_with_modes_off():
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        OUT.numpy()[:] = 2


def numpy_over_a_pointer():
    memory: Any = (ctypes.c_float * 64).from_address(OUT.data_ptr())
    np.add(np.frombuffer(memory, np.float32), 1, out=np.ctypeslib.as_array(memory))


def numpy_in_a_thread():
    memory: Any = (ctypes.c_float * 64).from_address(OUT.data_ptr())
    thread = threading.Thread(target=lambda: np.frombuffer(memory, np.float32).fill(1))
    thread.start()
    thread.join()


class Standing:
    """A thread that was there before anybody looked, and works on demand."""

    def __init__(self):
        self.wanted, self.done = threading.Event(), threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        self.wanted.wait()
        torch.mul(A, A, out=OUT)
        self.done.set()

    def __call__(self):
        self.wanted.set()
        self.done.wait(5)


SCRIPTED: Any = torch.jit.trace(lambda x: x + 1, A, check_trace=False)
CHEATS = {
    "add": lambda: torch.add(A, A, out=OUT),
    "a method": lambda: OUT.mul_(2),
    "an operator of its own namespace": lambda: torch.ops.prims.add(A, A),
    "in a joined thread": in_a_joined_thread,
    "modes off": with_modes_off,
    "below autograd": below_autograd,
    "numpy()": lambda: OUT.numpy(),
    "numpy() with modes off": numpy_with_modes_off,
    "np.asarray": lambda: np.asarray(OUT),
    "np.from_dlpack": lambda: np.from_dlpack(OUT),
    "to_dlpack": lambda: to_dlpack(OUT),
    "tolist": lambda: OUT.tolist(),
    "NumPy over a pointer": numpy_over_a_pointer,
    "NumPy in a thread": numpy_in_a_thread,
    "element by element": lambda: OUT.__setitem__(0, 1.0),
    "an element read": lambda: float(A[0]),
    "a copy": lambda: OUT.copy_(A),
    "scripted": lambda: SCRIPTED(A),
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS.keys())
def test_somebody_elses_work_is_seen(cheat):
    cheat()
    fault = judged(cheat)
    assert fault and fault.check == "library" and fault.evidence, "seen on the second call, as on any"


def test_a_thread_that_was_there_before_is_seen():
    assert judged(Standing()) == ("library", "says it is its own code, yet called mul")


@pytest.mark.parametrize(
    "blinds",
    [
        lambda: torch._C._autograd._disable_profiler(),
        lambda: torch._C._autograd._enable_record_function(False),
    ],
    ids=["profiler stopped", "callbacks off"],
)
def test_whoever_blinds_the_profiler_is_told(blinds):
    def call():
        blinds()
        with torch._C._DisableTorchDispatch():
            torch.add(A, A, out=OUT)

    try:
        fault = judged(call)
    finally:
        torch._C._autograd._enable_record_function(True)
    assert fault and fault.check == "library" and "marker" in fault.evidence


ALLOCATING = {
    "empty": lambda: torch.empty(8),
    "empty_like": lambda: torch.empty_like(OUT),
    "new_empty": lambda: OUT.new_empty(8),
    "empty_strided": lambda: torch.empty_strided((2, 2), (2, 1)),
    "modes off": lambda: _without_modes(lambda: torch.empty(8)),
}


def _without_modes(call):
    with torch._C._DisableTorchDispatch():
        return call()


@pytest.mark.parametrize("call", ALLOCATING.values(), ids=ALLOCATING.keys())
def test_tensors_that_are_allocated_are_seen(call):
    fault = judged(call)
    assert fault and fault.check == "allocates"


# --- what must not be ---


def test_views_and_questions_are_free():
    def call():
        x = A.view(8, 8).t()[1:].unsqueeze(0).expand(2, 7, 8)
        assert x.shape[0] == 2 and not x.is_contiguous() and OUT.contiguous() is not None
        A.view(8, 8).split(4, dim=1)
        return x.data_ptr(), A.to(torch.float32).numel()

    assert judged(call) is None


# One of each kind of launch here; `tests/evil` and the proofs hold all others.
HONEST = [("residual", "cpu.simd"), ("adamw", "cpu.naive"), ("layernorm", "cpu.simd"), ("attention", "cpu.flash")]


@pytest.mark.parametrize(("layer", "name"), HONEST)
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_own_code_with_openmp_is_not_blamed(layer, name, phase):
    variant = variants.find(ALL, layer, name)
    if not variant.has(phase):
        pytest.skip("has no backward")
    if reason := variants.unavailable(variant, "cpu", "fp32"):
        pytest.skip(reason)
    module, case = variant.load(), next(iter(cases_of(layer, phase, "fp32", [0])))
    arena = Arena(case, "cpu", workspace_of(module, case))
    arena.load(draw(case))
    arena.reset()
    arena.call(getattr(module, phase))
    assert judged(lambda: arena.call(getattr(module, phase)), variant) is None


def test_a_pinned_kernel_is_seen_to_run():
    pinned = replace(variants.find(ALL, "residual", "torch.eager"), kernels=("add*",))
    assert judge_calls(pinned, attested(lambda: torch.add(A, A, out=OUT), modes=False)[1]) is None
    fault = judge_calls(pinned, attested(lambda: torch.mul(A, A, out=OUT), modes=False)[1])
    assert fault == ("library", "none of add* ran, but mul")


def test_what_a_call_raises_goes_through_and_nothing_is_left_behind():
    with pytest.raises(ZeroDivisionError):
        attested(lambda: 1 / 0)
    assert not torch._C._autograd._profiler_enabled()
    assert judged(lambda: torch.add(A, A, out=OUT)) == ("library", "says it is its own code, yet called add")


def test_after_a_start_it_leaves_no_thread_behind():
    attest.start()
    before = world.take()
    attested(lambda: None)
    assert world.late_work(before, world.take()) == ""


def test_it_costs_little():
    took = []
    for _ in range(20):
        start = time.perf_counter()
        attested(lambda: None)
        took.append(time.perf_counter() - start)
    assert sorted(took)[10] < 20e-3, "every shape is attested; some 0.5 ms on a quiet core"


def test_a_library_loaded_by_ctypes_is_judged(monkeypatch):
    assert attest.judge_loaded(OWN) is None
    monkeypatch.setattr(deeds, "LOADED", ["libopenblas.so by ctypes"])
    assert attest.judge_loaded(OWN) == ("library", "says it is its own code, yet loaded libopenblas.so by ctypes")
    assert attest.judge_loaded(variants.find(ALL, "residual", "torch.eager")) is None


def test_pytorch_that_lies_elsewhere_is_no_variants_own_code(monkeypatch, tmp_path):
    """As that of who builds it by hand."""
    file, compiler = str(tmp_path / "torch" / "functional.py"), str(tmp_path / "torch" / "_inductor" / "codecache.py")
    library = str(tmp_path / "torch" / "lib" / "libtorch_cuda_linalg.so")
    assert attest._package(file) is None and not owners.trusted(file) and not ran._installed(library)
    for known in (attest._package, owners.trusted, ran._installed):
        known.cache_clear()
    monkeypatch.setattr(owners, "LIBRARIES", {"torch": tmp_path / "torch"})
    assert (attest._package(file), attest._package(compiler)) == ("torch", "torch.compile")
    assert attest._package(str(tmp_path / "mine.py")) is None and not owners.trusted(str(tmp_path / "mine.py"))
    assert owners.trusted(file) and ran._installed(library)


def test_evidence_stays_one_line():
    names = [f"operator_{i}" for i in range(100)]
    fault = judge_calls(OWN, attest.Seen(operators=names))
    assert fault and len(fault.evidence) < 300 and "and 92 more" in fault.evidence
