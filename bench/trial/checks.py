"""The proof: is a variant right on a case? Each way of being wrong is its own named check.

A variant is called on memory the harness owns. Before each call every output is poisoned; afterwards, in this order:

    returned        the function returned something: outputs go into the tensors it was given
    out_of_bounds   a guard band around an output or the workspace was written
    input_changed   an input's checksum is not what it was
    unwritten       poison survived in an output
    not_finite      NaN or infinity where the truth is finite
    inaccurate      further from the fp64 truth than K times plain torch (see judge.py)
    library         own code called ATen (or NumPy) to compute, or ran a GPU kernel that is not its own (attest.py);
                    or a pinned kernel did not run
    allocates       own code allocated tensors inside the call
    global_state    a global setting, a timer or the number of threads is not what it was
    nondeterministic  two calls differ although the variant says DETERMINISTIC = True
    sanitizer       compute-sanitizer found a fault (bench.layer --sanitize)

A simulated CUDA kernel can also fail by what the simulator sees while it runs: out-of-bounds, misaligned, race,
uninitialised, divergent barrier, deadlock, … (bench/simulate/README.md).
"""

import fnmatch
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.core import case
from bench.core.arena import Arena, checksum, equal_bits
from bench.core.variants import Variant
from bench.machine.devices import Device, is_gpu
from bench.machine.profiling import ANOTHER_PROFILER
from bench.trial import ran, truth
from bench.trial.truth import Brief, Finding, survivors
from reference import contract

# Bound before any variant is imported, so that a variant cannot put its own in.
PERF_COUNTER_NS, PROCESS_TIME_NS = time.perf_counter_ns, time.process_time_ns


def _gpu_clocks() -> tuple[object, ...]:
    return torch.cuda.Event, torch.cuda.Event.elapsed_time, torch.cuda.synchronize, torch.profiler.profile


GPU_CLOCKS = _gpu_clocks()

# Views and questions: they move no data.
ALLOWED = {
    *("view", "_unsafe_view", "reshape", "as_strided", "slice", "select", "narrow", "split", "split_with_sizes"),
    *("unbind", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "alias", "detach", "chunk", "diagonal"),
    *("sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_same_size", "_reshape_alias", "flatten"),
}
ALLOCATES = {"empty", "zeros", "ones", "full", "empty_like", "zeros_like", "ones_like", "full_like", "new_empty"}
ALLOCATES |= {
    "new_zeros",
    "new_full",
    "empty_strided",
    "new_empty_strided",
    "clone",
    "arange",
    "tensor",
    "scalar_tensor",
}
HANDS_OVER = {"numpy", "__array__", "tolist"}  # ways out of torch to another CPU library


@dataclass
class Verdict:
    """`check` is "ok" or the name of the check that failed; `evidence` says what was seen."""

    check: str = "ok"
    evidence: str = ""
    ratio: float = 0.0  # the worst error over all outputs and cases, in units of plain torch's
    deterministic: bool | None = None
    seconds: float = 0.0  # one call, untuned: enough to tell whether a larger shape would take minutes
    kernels: dict[str, int] = field(default_factory=dict)  # that ran on a GPU, where it was watched

    @property
    def ok(self) -> bool:
        return self.check == "ok"


class Attestation(TorchDispatchMode):
    """Records which ATen operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler at the first call: two seconds of each process

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(func._schema.name.split("::")[-1])
        return func(*args, **(kwargs or {}))


class Handovers(TorchFunctionMode):
    """Records tensors that are handed to another library."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in HANDS_OVER:
            self.called.append(name)
        return func(*args, **(kwargs or {}))


def prove(
    variant: Variant, function: Callable, arena: Arena, brief: Brief, device: Device, attests: bool = True
) -> Verdict:
    """Call `function` on a brief's inputs and judge everything it did. The arena's addresses stay the same
    from brief to brief, so that remembering by pointer does not help. `attests`: also look at what runs."""
    arena.load(brief.values)
    before = arena.input_checksums()
    state = global_state()
    # A first call may compile, and the compiler may leave a thread behind; the variant itself may not.
    arena.reset()
    arena.call(function)
    state["Python threads"] = threading.active_count()
    arena.reset()
    names_calls = attests and (variant.own_code or bool(variant.kernels))
    returned, called = _attested_call(arena, function) if names_calls else (arena.call(function), None)
    failed = inspect(arena, brief, returned, before)
    if failed.ok and called is not None:
        failed = _merge(failed, judge_calls(variant, called))
    if failed.ok and attests and is_gpu(device.name) and not os.environ.get(ANOTHER_PROFILER):
        arena.reset()
        kernels, allocated = ran.watch(device, lambda: arena.call(function))
        failed = _merge(failed, judge_kernels(variant, [k.name for k in kernels], allocated))
        failed.kernels = ran.counts(kernels)
    if failed.ok and (changed := difference(state, global_state())):
        failed.check, failed.evidence = "global_state", changed
    if not failed.ok:
        return failed
    first = arena.snapshot()
    arena.reset()
    device.synchronize()
    start = PERF_COUNTER_NS()
    arena.call(function)
    device.synchronize()
    seconds = (PERF_COUNTER_NS() - start) / 1e9
    again = inspect(arena, brief, None, before)
    again.seconds, again.kernels = seconds, failed.kernels
    again.deterministic = equal_bits(first, arena.outputs)
    if again.ok and variant.deterministic and not again.deterministic:
        again.check, again.evidence = (
            "nondeterministic",
            "two calls on the same inputs differ, yet DETERMINISTIC is True",
        )
    again.ratio = max(again.ratio, failed.ratio)
    return again


def inspect(arena: Arena, brief: Brief, returned: object, before: dict[str, int] | None) -> Verdict:
    """Judge the state a call left behind."""
    verdict = Verdict()

    def fail(check: str, evidence: str) -> Verdict:
        verdict.check, verdict.evidence = check, evidence
        return verdict

    if returned is not None:
        return fail("returned", f"returned a {type(returned).__name__}; outputs belong into the tensors given")
    if broken := arena.broken_fences():
        return fail("out_of_bounds", "; ".join(f"{name}: {what}" for name, what in broken.items()))
    if before is not None:
        changed = [name for name, crc in arena.input_checksums().items() if crc != before[name]]
        if changed:
            return fail("input_changed", f"input {', '.join(changed)} changed")
    if left := arena.survivors():
        where = [f"poison survived in {survivors(mask)} of {name}" for name, mask in left.items()]
        return fail("unwritten", "; ".join(where[:3]))
    findings = compare(arena, brief)
    verdict.ratio = max((f.ratio for f in findings), default=0.0)
    wrong = [f for f in findings if f.evidence]
    if wrong:
        check = "not_finite" if any("not finite" in f.evidence for f in wrong) else "inaccurate"
        return fail(check, "; ".join(f.evidence for f in wrong[:3]))
    return verdict


def compare(arena: Arena, brief: Brief) -> list[Finding]:
    """Every output of the contract against its yard; an output without a yard would be a bug here."""
    yards = {y.name: y for y in brief.yards}
    findings = []
    for t in contract.pass_of(brief.case.module, brief.case.phase).outputs:
        for i, part in enumerate(case.each(arena.outputs[t.name])):
            name = f"{t.name}[{i}]" if t.many else t.name
            findings.append(truth.judge(part, yards.pop(name), sane=brief.case.edit is None))
    assert not yards, f"outputs never compared: {sorted(yards)}"
    return findings


def _attested_call(arena: Arena, function: Callable) -> tuple[object, list[str]]:
    with Handovers() as handovers, Attestation() as attestation:
        returned = arena.call(function)
    return returned, [*attestation.called, *(f"Tensor.{name}" for name in handovers.called)]


def judge_calls(variant: Variant, called: list[str]) -> Verdict:
    """Own code may only make views; a variant that pins a kernel (KERNELS) must have run it."""
    if variant.own_code:
        allocated = sorted({name for name in called if name in ALLOCATES})
        computed = sorted({name for name in called if name not in ALLOWED and name not in ALLOCATES})
        if computed:
            return Verdict("library", f"says it is its own code, yet called {', '.join(computed)}")
        if allocated:
            return Verdict("allocates", f"allocated inside the call: {', '.join(allocated)}")
    elif variant.kernels and not any(fnmatch.fnmatch(c, k) for c in called for k in variant.kernels):
        return Verdict("library", f"none of {', '.join(variant.kernels)} ran, but {', '.join(sorted(set(called)))}")
    return Verdict()


def judge_kernels(variant: Variant, names: list[str], allocated: int) -> Verdict:
    """Own code runs its own kernels, in memory that it was given."""
    if not variant.own_code:
        return Verdict()
    if alien := ran.foreign(variant, names):
        return Verdict("library", f"says it is its own code, yet ran {', '.join(alien)}")
    if allocated:
        return Verdict("allocates", f"allocated {allocated} bytes inside the call")
    return Verdict()


def _merge(base: Verdict, other: Verdict) -> Verdict:
    if not other.ok:
        base.check, base.evidence = other.check, other.evidence
    return base


def global_state() -> dict[str, object]:
    """Settings that change what other code computes or how long it seems to take."""
    tiny = torch.tensor(1e-40)
    state: dict[str, object] = {
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "number of threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": torch.backends.cudnn.enabled,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "denormals are kept": bool((tiny * 0.5) != 0),
        "autocast": torch.is_autocast_enabled("cpu"),
        "random state": _random_state(),
        "Python threads": threading.active_count(),
        "clock": (time.perf_counter_ns is PERF_COUNTER_NS, time.process_time_ns is PROCESS_TIME_NS),
        "clocks of a GPU": _gpu_clocks() == GPU_CLOCKS,
    }
    if torch.cuda.is_available():
        state["allow TF32"] = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    return state


def _random_state() -> int:
    return checksum(torch.get_rng_state())


def difference(before: dict[str, object], after: dict[str, object]) -> str:
    return "; ".join(
        f"{name} went from {before[name]} to {after[name]}" for name in before if before[name] != after[name]
    )
