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

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.core import case
from bench.core.arena import Arena, equal_bits
from bench.core.variants import Variant
from bench.machine.devices import Device, is_gpu
from bench.machine.profiling import ANOTHER_PROFILER
from bench.trial import ran, truth
from bench.trial.attest import Fault, attested, judge_calls, judge_kernels
from bench.trial.truth import Brief, Finding, survivors
from bench.trial.world import PERF_COUNTER_NS, difference, settled
from bench.trial.world import take as global_state
from reference import contract


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
    state = settled(state)
    arena.reset()
    names_calls = attests and (variant.own_code or bool(variant.kernels))
    returned, seen = None, None
    if names_calls:
        returned, seen = attested(lambda: arena.call(function), modes=variant.own_code)
    else:
        returned = arena.call(function)
    failed = inspect(arena, brief, returned, before)
    if failed.ok and seen is not None:
        failed = _merge(failed, judge_calls(variant, seen))
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


def _merge(base: Verdict, fault: Fault | None) -> Verdict:
    if fault:
        base.check, base.evidence = fault
    return base
