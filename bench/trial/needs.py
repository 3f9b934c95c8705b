"""What judging and timing a case take of memory and time, and what is left out where that is too much.

On a CPU by the size of the case; where contestants would take most of the memory that is free they have it in turns.
On a GPU by what the judge found there (`Means`): the memory that is free, its own FLOP/s in fp64 and bytes/s of a copy.
"""

from dataclasses import dataclass

from bench.core.arena import handed_bytes
from bench.core.case import LARGE, Case
from bench.trial.truth import KEPT_SHARE, PIECE_SHARE, Means, work_of
from reference import contract

TRUTHS, DRAWS = 3, 3  # contents whose truth is known, besides those of the last turns; draws; …
DEAR_FLOPS, DEAR_BYTES = 2e9, 1 << 28  # … on a CPU one truth where it takes more than this, or its outputs do, …
DRAWN_BYTES = 1 << 27  # … and one draw where it is larger
HARD_WORK = 1e9  # FLOPs plus bytes of a call up to which a structured case is tried at the timed shape, too
DEAR_SECONDS = 1.0  # on a GPU one truth where all together take longer
PASSES = 50  # over all tensors in fp64 that a truth and a comparison are at most (counted: 5 to 53 of them)
USED = 0.9  # of the memory that is free
HELD = 2  # times its arena that a contestant on a CPU holds between its turns: it, and what was handed back
SPARE = 3  # times its arena that a variant of torch makes on its way, and its process then holds


@dataclass(frozen=True)
class Needs:
    """How many draws and truths a race has. `parked`: contestants have their memory in their turns alone."""

    draws: int
    truths: int
    parked: bool = False
    hard: bool = False  # whether a structured case at the timed shape is worth its truth and its yard


def of(case: Case, last: int, contestants: int = 1, means: Means | None = None, free: int = 0) -> Needs:
    """What a race is given. last: contents that are judged in the last turns; means: of a GPU; free: bytes, on a CPU, 0
    where they are not known."""
    p = contract.pass_of(case.module, case.phase)
    flops = contract.flops(case.module, case.shape, case.phase)
    if means is None:
        dear = flops > DEAR_FLOPS or sum(t.bytes(case.shape) for t in p.outputs) > DEAR_BYTES
        draws = 1 if input_bytes(case) > DRAWN_BYTES else DRAWS
        wanted = draws * input_bytes(case) + (contestants * HELD + SPARE) * handed_bytes(case)
        return Needs(draws, 1 if dear else TRUTHS, 0 < USED * free < wanted, hard=_hard(case))
    truths = TRUTHS if (TRUTHS + last) * truth_seconds(case, means) <= DEAR_SECONDS else 1
    room = USED * means["free_bytes"]
    for draws in (DRAWS, 1):
        if judge_bytes(case, draws, truths + last, means) + contestants * contestant_bytes(case, draws, means) <= room:
            return Needs(draws, truths)
    return Needs(1, truths, parked=True)


def _hard(case: Case) -> bool:
    """Whether a structured case is tried at the timed shape: where that is larger than any slice of the proof, and its
    yard, which takes as many truths as there are inputs, not too dear. On a CPU alone: on a GPU the yard of what is
    large comes from a piece of it, in which what is structured need not be."""
    largest = contract.sliced(case.module, case.shape, LARGE // contract.ITEM_SIZE[case.shape["dtype"]])
    return largest != case.shape and work_of(case) <= HARD_WORK


def input_bytes(case: Case) -> int:
    """Of one draw."""
    p = contract.pass_of(case.module, case.phase)
    return sum(t.bytes(case.shape) for t in p.tensors() if t in p.inputs or t.inplace or t.accumulates)


def judge_bytes(case: Case, draws: int, contents: int, means: Means) -> int:
    """At most, of the judge's process: its draws; the window and what is copied out of it; a piece and the truth that
    is kept, each within a share of the memory."""
    drawn, left, free = draws * input_bytes(case), handed_bytes(case), means["free_bytes"]
    kept = contents * kept_bytes(case, free // KEPT_SHARE)
    return means["context_bytes"] + drawn + max(drawn, left) + left + 2 * (free // PIECE_SHARE) + kept


def kept_bytes(case: Case, room: int) -> int:
    """Of one truth, fp32 for narrow outputs, else fp64: the smallest outputs, as far as there is room."""
    shape, total = case.shape, 0
    p = contract.pass_of(case.module, case.phase)
    wider = {1: 4, 2: 2, 4: 2, 8: 1}  # times as many bytes, by those of an element
    for size in sorted(t.bytes(shape) * wider[contract.ITEM_SIZE[t.dtype_in(shape)]] for t in p.outputs):
        total += size if total + size <= room else 0
    return total


def contestant_bytes(case: Case, draws: int, means: Means) -> int:
    """Of a contestant's process: its context, its copies of the draws, its arena, and what it makes on its way. Copies
    of a small arena are made where there is room."""
    return means["context_bytes"] + draws * input_bytes(case) + (1 + SPARE) * handed_bytes(case)


def truth_seconds(case: Case, means: Means) -> float:
    """Of working out one truth and comparing with it."""
    shape, p = case.shape, contract.pass_of(case.module, case.phase)
    elements = sum(t.bytes(shape) // contract.ITEM_SIZE[t.dtype_in(shape)] for t in p.tensors())
    flops = contract.flops(case.module, shape, case.phase)
    return flops / means["flops_per_s"] + PASSES * 8 * elements / means["bytes_per_s"]
