"""The proof: is a variant right on a case? Each way of being wrong is its own named check.

A variant is called in a process of its own, on memory that the harness owns there. What a call left behind is looked at
in the judge's process (bench/trial/judge.py), in this order; the first that fails names the verdict:

    returned        the function returned something: outputs go into the tensors it was given
    not_the_output  an argument is no longer the tensor it was: type, address, sizes, strides
    out_of_bounds   a guard band around an input, an output or the workspace was written
    input_changed   an input does not hold what it was given
    late            elements that were looked at once the call was over were written afterwards
    unwritten       poison survived in an output
    not_finite      NaN or infinity where the truth is finite
    inaccurate      further from the fp64 truth than K times plain torch (truth.py), or another whole number than the
                    truth's; every element is compared
    source          own code names another library, a thread, the interpreter's frames in its source (source.py)
    library         own code called ATen (or NumPy) to compute, or ran a GPU kernel that is not its own (ran.py);
                    or a pinned kernel did not run
    allocates       own code allocated tensors inside the call
    global_state    a setting of the process, a timer or the number of threads is not what it was
    declined        it says at a shape that it took before that it does not take it, which depends on numbers then
    nondeterministic  two calls differ although the variant says DETERMINISTIC = True
    too_little_work the simulator counted less traffic than the contract's compulsory bytes
    sanitizer       compute-sanitizer found a fault (bench.layer --sanitize)

When it is timed (race.py), calls that nobody can foresee are judged in the same way, and

    clock           its process tells times that do not fit the clock here

A simulated kernel can also fail by what the simulator sees while it runs: out-of-bounds, misaligned, race,
uninitialised, divergent barrier, deadlock, … (bench/simulate/README.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

import torch

from bench.core import case
from bench.core.arena import Arena, equal_bits
from bench.core.variants import Variant
from bench.trial import accuracy, attest
from bench.trial.accuracy import Finding, survivors
from bench.trial.attest import Fault, Seen
from bench.trial.truth import Brief
from reference import contract

# An error up to so many times the limit may be luck, of the draw or of the yard: it is looked at again.
BORDERLINE = 4.0


@dataclass
class Verdict:
    """`check` is "ok" or the name of the check that failed; `evidence` says what was seen."""

    check: str = "ok"
    evidence: str = ""
    ratio: float = 0.0  # the worst error over all outputs and cases, in units of plain torch's
    deterministic: bool | None = None

    @property
    def ok(self) -> bool:
        return self.check == "ok"

    @property
    def borderline(self) -> bool:
        return self.check == "inaccurate" and self.ratio <= BORDERLINE * accuracy.K


class Watched(TypedDict):
    """What a variant's process says of a call that it watched."""

    returned: str  # a type's name; "": nothing
    tampered: str  # what became of the tensors that it was given
    seen: Seen | None  # operators of torch, and ways out of it; None: nobody looked
    brought: Fault | None  # what is against the libraries that came with it
    kernels: list[str] | None  # that a GPU ran; None: not watched
    allocated: int  # bytes on a GPU
    changed: str  # of the process's settings


def facts(variant: Variant, seen: Watched) -> Verdict:
    """Judge how a call went about it."""
    if seen["returned"]:
        return Verdict("returned", f"returned a {seen['returned']}; outputs belong into the tensors given")
    if seen["tampered"]:
        return Verdict("not_the_output", seen["tampered"])
    fault = attest.judge_calls(variant, seen["seen"]) if seen["seen"] is not None else None
    fault = fault or seen["brought"]
    if fault is None and seen["kernels"] is not None:
        fault = attest.judge_kernels(variant, seen["kernels"], seen["allocated"])
    if fault:
        return Verdict(*fault)
    return Verdict("global_state", seen["changed"]) if seen["changed"] else Verdict()


def inspect(arena: Arena, brief: Brief, probes: Iterable[tuple[str, int, list[int]]] = ()) -> Verdict:
    """Judge what a call left behind. The arena holds what was handed back; the brief, what must be there."""
    if broken := arena.broken_fences():
        return Verdict("out_of_bounds", "; ".join(f"{name}: {what}" for name, what in broken.items()))
    if changed := [name for name, buffer in arena.inputs.items() if not brief.contents.held_by(name, buffer)]:
        return Verdict("input_changed", f"input {', '.join(changed)} changed")
    if late := arena.late(probes):
        return Verdict("late", late)
    if left := _unwritten(arena, brief):
        where = [f"poison survived in {survivors(mask)} of {name}" for name, mask in left.items()]
        return Verdict("unwritten", "; ".join(where[:3]))
    findings = compare(arena, brief)
    ratio = max((f.ratio for f in findings), default=0.0)
    wrong = [f for f in findings if f.evidence]
    if wrong:
        check = "not_finite" if any(f.check == "not_finite" for f in wrong) else "inaccurate"
        return Verdict(check, "; ".join(f.evidence for f in wrong[:3]), ratio)
    return Verdict(ratio=ratio)


def _unwritten(arena: Arena, brief: Brief) -> dict[str, torch.Tensor]:
    """Where the poison survived; not where it is a number, and the right one."""
    found = {}
    truths = {yard.name: yard.truth for yard in brief.yards}
    for name, left in arena.survivors().items():
        if isinstance(truth := truths.get(name), torch.Tensor):
            dtype = next(yard.dtype for yard in brief.yards if yard.name == name)
            left &= case.bits(truth.to(dtype)).view(left.shape) != arena.poison[dtype]
        if left.any():
            found[name] = left
    return found


def same(one: Arena, other: Arena) -> bool:
    """Whether two calls left the same outputs, bit by bit."""
    return equal_bits(one.outputs, other.outputs)


def compare(arena: Arena, brief: Brief) -> list[Finding]:
    """Every output of the contract against its yard; an output without a yard would be a bug here."""
    parts = {
        f"{t.name}[{i}]" if t.many else t.name: (i, part)
        for t in contract.pass_of(brief.case.module, brief.case.phase).outputs
        for i, part in enumerate(case.each(arena.outputs[t.name]))
    }
    yards = {y.name: y for y in brief.yards}
    if yards.keys() != parts.keys():
        raise RuntimeError(f"outputs never compared: {sorted(yards.keys() ^ parts.keys())}")
    findings = {}
    for name, (_, part) in sorted(parts.items(), key=lambda item: item[1][0]):  # as truth comes that is worked out anew
        findings[name] = accuracy.judge(part, yards[name], sane=brief.case.edit is None)
    return [findings[name] for name in parts]
