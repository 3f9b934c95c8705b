"""What the cases of a proof come to, with calls and verdicts that are made up. The next case is called while the judge
looks at the last: what is said is said of the first that fails."""

import importlib.util
import itertools
import re
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from bench.core.case import Case, draw
from bench.core.process import ProcessFailed
from bench.core.shared import stored
from bench.core.variants import discover, find
from bench.trial import accuracy, prove, room
from bench.trial.checks import Verdict
from bench.trial.judge import Judge
from bench.trial.prove import Proof
from bench.trial.room import Room, Setting
from bench.trial.session import predicted_too_slow
from reference import contract
from tools import cheats

FIRST = Case("residual", "forward", {"N": 8, "dtype": "fp32"}, "case 0")
CASES = [replace(FIRST, name=f"case {i}", seed=i, shape=FIRST.shape | {"N": 7 + i}) for i in range(4)]
EAGER = find(discover(), "residual", "torch.eager")
PROVED: Any = {"counts": {}, "notes": [], "seconds": 0.5}
RIGHT = Verdict(ratio=1.0)


def off(times: float, check: str = "inaccurate") -> Verdict:
    """So many times the limit."""
    return Verdict(check, f"{times:g}x", times * accuracy.K)


FAR = off(100)


def proof_of(
    monkeypatch,
    verdicts: Sequence[Verdict | ProcessFailed],
    calls: Sequence[ProcessFailed | None],
    behind: bool = True,
    further: list[Verdict] | None = None,
    most: int | None = None,
    device: str = "cpu",
    seconds: float = 0.5,
) -> tuple[Proof, list[str]]:
    """A proof whose calls end in failures or not, as looks at them do, whose verdicts are these (`further`: of what is
    drawn again); and how it went, step by step. seconds: of each call."""
    went: list[str] = []

    def ask(command: str, limit: float, case: Case, **_: object) -> Any:
        went.append(f"call {case.name[-1]}" if case in CASES else "call again")
        if case in CASES and (failure := calls[CASES.index(case)]):
            raise failure
        return PROVED | {"seconds": seconds}

    def judged(variant: object, case: Case, *_: object) -> Verdict:
        if case not in CASES:
            assert further and case.name in {c.name for c in CASES}
            return further.pop(0)
        went.append(f"judge {case.name[-1]}")
        if isinstance(verdict := verdicts[CASES.index(case)], ProcessFailed):
            raise verdict
        return verdict

    monkeypatch.setattr(prove, "judged", judged)
    monkeypatch.setattr(prove.source, "foreign", lambda variant: [])
    proof = Proof(EAGER, "forward", "fp32")
    judge: Any = SimpleNamespace(
        given=lambda *_: None, with_inputs=lambda ask: ask(), behind=behind, prepare=lambda cases, yardstick: None
    )
    worker: Any = SimpleNamespace(ask=ask)
    prove._prove_phase(proof, CASES, worker, judge, EAGER, Setting(device), lambda _: None, most)
    assert not further
    return proof, went


@pytest.mark.parametrize("behind", [True, False])
def test_every_case_is_called_and_judged(monkeypatch, behind):
    proof, went = proof_of(monkeypatch, [RIGHT] * 4, [None] * 4, behind)
    assert proof.ok and proof.cases == 4
    in_turn = [f"{what} {i}" for i in range(4) for what in ("call", "judge")]
    assert sorted(went) == sorted(in_turn)
    assert behind or went == in_turn, "what one call left lies where the next goes"


def test_what_launching_alone_takes_is_no_speed(monkeypatch):
    """A compiled variant is proved at two small shapes, which on a GPU take some hundred microseconds as any call."""
    large = Case("residual", "forward", {"N": 1 << 26, "dtype": "fp32"}, "timed")

    def said(device: str, seconds: float) -> str:
        proof, _ = proof_of(monkeypatch, [RIGHT] * 4, [None] * 4, device=device, seconds=seconds)
        return predicted_too_slow(proof, large, limit=10.0)

    assert "too slow" in said("cpu", 300e-6), "of whoever computes from the first moment on"
    assert said("cuda", 300e-6) == ""
    assert "too slow" in said("cuda", 0.1)


def test_a_first_look_calls_no_more_than_it_needs(monkeypatch):
    _, went = proof_of(monkeypatch, [RIGHT] * 4, [ProcessFailed("skipped", "a form"), None, None, None], most=1)
    assert went == ["call 0", "call 1", "judge 1"]


@pytest.mark.parametrize("after", [None, ProcessFailed("crash", "died"), ProcessFailed("skipped", "grouped queries")])
def test_a_wrong_case_is_told_whatever_becomes_of_the_next_call(monkeypatch, after):
    proof, went = proof_of(monkeypatch, [RIGHT, FAR, RIGHT, RIGHT], [None, None, after, None])
    assert (proof.check, proof.cases) == ("inaccurate", 2) and "case 1" in proof.evidence
    assert "call 3" not in went and "judge 2" not in went, "nor is it gone on with for long"


def test_a_crash_is_told_of_its_own_case_once_those_before_were_right(monkeypatch):
    with pytest.raises(ProcessFailed, match=r"died \[case 2, seed 2\]"):
        proof_of(monkeypatch, [RIGHT] * 4, [None, None, ProcessFailed("crash", "died"), None])


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (ProcessFailed("timeout", "no answer"), r"timeout: no answer \[case 2, seed 2\]"),
        (None, "error: no such file"),
        (ProcessFailed("skipped", "grouped queries"), "error: no such file"),
    ],
)
def test_what_ended_with_its_process_is_no_fault_of_the_truth(monkeypatch, after, told):
    """A process is ended that takes too long over a case, and the judge has not yet opened what the last one left."""
    lost = ProcessFailed("error", "no such file")
    with pytest.raises(ProcessFailed) as failed:
        proof_of(monkeypatch, [RIGHT, lost, RIGHT, RIGHT], [None, None, after, None])
    assert re.fullmatch(told, f"{failed.value.status}: {failed.value.evidence}")


@pytest.mark.parametrize(("lie", "asked"), [(["there", "elsewhere", "elsewhere"], 2), (["there"] * 3, 1)])
def test_inputs_that_were_lost_with_the_judge_are_given_again(lie, asked):
    """A killed one is begun anew, and its inputs lie elsewhere: who was told of the old ones is asked again, once."""
    calls = []

    def ask(*_, given: str, **__: object) -> Any:
        calls.append(given)
        raise ProcessFailed("error", "no such file")

    judge: Any = SimpleNamespace(given=lambda *_: lie.pop(0), with_inputs=lambda ask: ask())
    with pytest.raises(ProcessFailed, match=r"no such file \[case 0, seed 0\]"):
        prove._called(CASES[0], SimpleNamespace(ask=ask), judge, Setting(), 1.0)  # type: ignore[arg-type]
    assert calls == ["there", "elsewhere"][:asked]


def test_a_last_case_that_is_wrong_is_seen(monkeypatch):
    proof, _ = proof_of(monkeypatch, [RIGHT, RIGHT, RIGHT, FAR], [None] * 4)
    assert proof.check == "inaccurate" and "case 3" in proof.evidence


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("behind", [True, False])
def test_an_error_near_the_limit_that_no_other_draw_has_is_told_and_passes(monkeypatch, at, behind):
    verdicts = [off(1.1) if i == at else RIGHT for i in range(4)]
    proof, went = proof_of(monkeypatch, verdicts, [None] * 4, behind, [Verdict(ratio=1.0), Verdict(ratio=2.0)])
    assert proof.ok and proof.ratio == 1.1 * accuracy.K, "the row shows the worst, whatever came of it"
    assert proof.cases == 4 and went.count("call again") == prove.REDRAWS
    left = went[len(went) - went[::-1].index("call again") :]
    assert at == 3 or "call 2" in left, "the further draws went where it had left its outputs"
    assert proof.notes == [f"case {at}, seed {at}: 1.1x; in 2 further draws at most 2x, so one draw's luck"]


@pytest.mark.parametrize("further", [[off(1.05)], [RIGHT, off(3)], [RIGHT, off(9, "not_finite")]])
def test_an_error_that_another_draw_has_too_is_wrong(monkeypatch, further):
    said = further[-1].evidence
    proof, _ = proof_of(monkeypatch, [RIGHT, off(1.1), RIGHT, RIGHT], [None] * 4, further=further)
    assert proof.status == "wrong" and proof.check == "inaccurate"
    assert proof.evidence.startswith("inaccurate: 1.1x; drawn again with seed ")
    assert said in proof.evidence and "[case 1, seed 1]" in proof.evidence


@pytest.mark.parametrize("verdict", [off(4.1), off(1, "unwritten"), off(float("nan")), off(1, "not_finite")])
def test_what_no_luck_explains_is_wrong_at_once(monkeypatch, verdict):
    proof, went = proof_of(monkeypatch, [verdict, RIGHT, RIGHT, RIGHT], [None] * 4)
    assert proof.status == "wrong" and "call again" not in went


# --- in the simulator: several processes for the cases of one proof ---


class Member:
    """A worker that is made up: it tells who it is, and a call of it ends once it is killed."""

    def __init__(self, *_: object):
        self.alive, self.killed, self.closed = True, threading.Event(), False

    def kill(self) -> None:
        self.killed.set()

    def close(self) -> None:
        self.closed = True


def shared_proof(
    monkeypatch, outcome: dict[int, Any], most: int = 3, verdicts: list[Verdict] | None = None
) -> tuple[Proof, list[tuple[int, Any]], list[Member]]:
    """A proof by `most` members, whose call of a case fails, takes seconds, waits for ever, or succeeds at once."""
    made = [Member()]
    went: list[tuple[int, Any]] = []

    def another(*_: object) -> Member:
        made.append(Member())
        return made[-1]

    def called(case: Case, worker: Any, *_: object) -> Any:
        i = int(case.name[-1])
        went.append((i, worker))
        what = outcome.get(i)
        if isinstance(what, BaseException):
            raise what
        if what == "for ever":
            assert worker.killed.wait(20)
            worker.alive = False
            raise ProcessFailed("crash", "killed")
        time.sleep(what or 0.01)
        return PROVED

    monkeypatch.setattr(prove, "JOIN_SECONDS", 0.0)
    monkeypatch.setattr(prove, "Worker", another)
    monkeypatch.setattr(prove, "_called", called)
    monkeypatch.setattr(prove, "judged", lambda v, case, *_: (verdicts or [RIGHT] * 4)[int(case.name[-1])])
    monkeypatch.setattr(prove.source, "foreign", lambda variant: [])
    judge: Any = SimpleNamespace(prepare=lambda cases, yardstick: None)
    team: dict[int, Any] = {}
    proof, worker = Proof(EAGER, "forward", "fp32"), made[0]
    share = partial(prove._prove_side_by_side, team=team, most=most)
    free: Any = partial(prove._member, team, most, EAGER, Setting())
    how: Any = (CASES, worker, judge, EAGER, Setting(), lambda _: None, None, share, free)
    try:
        prove._prove_phase(proof, *how)
    finally:
        assert not [t for t in threading.enumerate() if "(work)" in t.name], "nobody is left at work"
    return proof, went, made


def test_cases_are_shared_among_workers_and_each_is_called_once(monkeypatch):
    proof, went, made = shared_proof(monkeypatch, dict.fromkeys(range(4), 0.2))
    assert proof.ok and proof.cases == 4 and sorted(i for i, _ in went) == [0, 1, 2, 3]
    assert len(made) == 3 and {id(w) for _, w in went} == {id(w) for w in made}, "all of them were at work"
    assert not any(w.killed.is_set() for w in made)


def test_two_begin_at_the_two_ends(monkeypatch):
    """Neighbours want one kernel: who takes both compiles it once."""
    proof, went, made = shared_proof(monkeypatch, dict.fromkeys(range(4), 0.2), most=2)
    by = [[i for i, w in went if w is worker] for worker in made]
    assert proof.ok and by[0] == sorted(by[0]) and by[1] == sorted(by[1], reverse=True) and by[1][0] == 3


def test_the_first_failure_in_order_is_told_and_those_at_work_are_ended(monkeypatch):
    """Case 1 fails when case 3 has long failed; case 2 never ends, and is not waited for."""
    outcome = {1: 0.3, 2: "for ever", 3: ProcessFailed("crash", "died")}
    proof, _, made = shared_proof(monkeypatch, outcome, verdicts=[RIGHT, FAR, RIGHT, RIGHT])
    assert proof.status == "wrong" and "case 1" in proof.evidence and proof.cases == 2
    assert any(w.killed.is_set() for w in made)
    outcome = {0: 0.3, 1: ProcessFailed("wrong", "race"), 2: "for ever", 3: ProcessFailed("crash", "died")}
    with pytest.raises(ProcessFailed, match="race"):
        shared_proof(monkeypatch, outcome)


def test_what_a_variant_does_not_have_is_skipped_whoever_was_asked(monkeypatch):
    outcome = {0: ProcessFailed("skipped", "a form"), 2: ProcessFailed("skipped", "a form")}
    proof, *_ = shared_proof(monkeypatch, outcome)
    assert proof.ok and proof.cases == 2 and proof.unsupported == ["a form"]


def test_who_takes_a_shape_with_some_numbers_and_not_with_others_is_wrong(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "CASES", [replace(c, shape=FIRST.shape) for c in CASES])
    proof, *_ = shared_proof(monkeypatch, {2: ProcessFailed("skipped", "a form")})
    assert (proof.status, proof.check) == ("wrong", "declined") and "case 2, seed 2 (a form)" in proof.evidence


def test_an_error_near_the_limit_is_drawn_again_by_one_that_is_not_at_work(monkeypatch):
    proof, went, _ = shared_proof(monkeypatch, {}, verdicts=[RIGHT, off(1.1), RIGHT, RIGHT])
    assert proof.status == "wrong" and "drawn again" in proof.evidence, "its other draws have it, too"
    others = [w for i, w in went if i == 1][1:]
    assert others and not {id(w) for w in others} & {id(w) for i, w in went if i != 1}


@pytest.mark.parametrize(("name", "status"), [("cuda.naive", "ok"), ("cuda.missing_barrier", "wrong")])
def test_a_real_proof_comes_to_the_same_by_one_process_and_by_two(monkeypatch, name, status):
    monkeypatch.setattr(prove, "JOIN_SECONDS", 0.0)
    known = discover((cheats.EVIL,))
    variant, setting = find(known, "residual", name), Setting(time_limit=60)
    with Judge(1) as judge:
        one, two = (
            next(prove.prove(variant, ("forward",), "fp32", [0, 1], judge, setting, EAGER, count=False, workers=n))
            for n in (1, 2)
        )
    assert one.status == two.status == status and one.check == two.check and one.by_simulator and two.by_simulator
    assert one.cases_all == two.cases_all and (not one.ok or one.cases == two.cases == one.cases_all)
    assert one.evidence.partition("[")[2] == two.evidence.partition("[")[2], "of the first case that shows it"


@pytest.mark.parametrize(("name", "threads"), [("cuda.naive", 1), ("torch.eager", 2)])
def test_what_is_simulated_has_one_thread(monkeypatch, name, threads):
    """Others of torch's would wait for it, spinning."""
    seen: list[Setting] = []

    def worker(_: object, setting: Setting) -> None:
        seen.append(setting)
        raise ProcessFailed("error", "not started")

    monkeypatch.setattr(prove, "Worker", worker)
    variant, judge = find(discover(), "residual", name), SimpleNamespace(prepare=lambda *_: None)
    how: Any = (variant, ("forward",), "fp32", [0], judge, Setting(threads=2), EAGER)
    assert [p.evidence for p in prove.prove(*how)] == ["not started"]
    assert [s.threads for s in seen] == [threads]


def test_what_torch_compile_imports_is_imported_at_once_and_by_nobody_else(monkeypatch):
    """Call by call it would be looked through for garbage; and others have no need of it."""
    loaded: list[tuple[str, ...]] = []
    monkeypatch.setattr(room.process, "load", loaded.append)
    for name in ("torch.eager", "torch.compile", "cpu.naive"):
        Room(find(discover(), "residual", name), Setting(threads=1))
    assert loaded == [room.OF_TORCH_COMPILE] and all(map(importlib.util.find_spec, *loaded))


def test_a_call_that_waits_for_a_core_is_not_too_slow_to_be_timed(monkeypatch):
    """What the proof's speed is worked out from is the CPU's time where the clock's is longer."""
    variant = find(discover(), "residual", "torch.eager")
    made = Room(variant, Setting(threads=1))
    case = Case("residual", "forward", {"N": 70, "dtype": "fp32"}, "ragged 0", seed=3)
    box, given = stored(draw(case))
    seconds = []

    @contextmanager
    def born():
        time.sleep(0.2)
        yield

    monkeypatch.setattr(made.ahead, "born", born)
    for used_ns in (10**6, 10**12):  # other threads of this process may be at work, so by a clock of its own
        clock = itertools.count(0, used_ns)
        monkeypatch.setattr(room, "PROCESS_TIME_NS", clock.__next__)
        seconds.append(made.prove(case, given, 1)["seconds"])
    box.close()
    assert seconds[0] == 0.001 and 0.2 <= seconds[1] < 1000
    work = contract.flops(case.module, case.shape, "forward") + contract.min_bytes(case.module, case.shape, "forward")
    proofs = [Proof(variant, "forward", "fp32", work_per_s=rate) for rate in (0.0, work / 1.9, work / 2.1)]
    assert [bool(predicted_too_slow(proof, case, 4.0)) for proof in proofs] == [False, False, True]
