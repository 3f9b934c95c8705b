"""The proof calls the next case while the judge looks at the last: what is said is said of the first that fails."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from bench.core.case import Case
from bench.core.process import ProcessFailed
from bench.core.variants import discover, find
from bench.trial import prove
from bench.trial.checks import Verdict
from bench.trial.room import Setting

FIRST = Case("residual", "forward", {"N": 8, "dtype": "fp32"}, "case 0")
CASES = [replace(FIRST, name=f"case {i}") for i in range(4)]
PROVED: Any = {"counts": {}, "notes": [], "seconds": 0.5}
RIGHT, INACCURATE = Verdict("ok", ""), Verdict("inaccurate", "far off")


def proof_of(
    monkeypatch,
    verdicts: list[Verdict],
    calls: list[ProcessFailed | None],
    behind: bool = True,
    most: int | None = None,
):
    """A proof whose calls end in failures or not, whose verdicts are these; and how it went, step by step."""
    went: list[str] = []

    def ask(command: str, limit: float, case: Case, **_: object) -> Any:
        went.append(f"call {case.name[-1]}")
        if failure := calls[CASES.index(case)]:
            raise failure
        return PROVED

    def judged(variant: object, case: Case, *_: object) -> Verdict:
        went.append(f"judge {case.name[-1]}")
        return verdicts[CASES.index(case)]

    monkeypatch.setattr(prove, "judged", judged)
    variant = find(discover(), "residual", "torch.eager")
    proof = prove.Proof(variant, "forward", "fp32")
    judge: Any = SimpleNamespace(given=lambda *_: None, with_inputs=lambda ask: ask(), behind=behind)
    worker: Any = SimpleNamespace(ask=ask)
    prove._prove_phase(proof, CASES, worker, judge, Setting(), lambda _: None, most)
    return proof, went


@pytest.mark.parametrize("behind", [True, False])
def test_every_case_is_called_and_judged(monkeypatch, behind):
    proof, went = proof_of(monkeypatch, [RIGHT] * 4, [None] * 4, behind)
    assert (
        proof.ok
        and proof.cases == 4
        and sorted(went) == sorted(f"{w} {i}" for w in ("call", "judge") for i in range(4))
    )
    if not behind:
        assert went == [f"{w} {i}" for i in range(4) for w in ("call", "judge")], (
            "what one call left lies where the next goes"
        )


@pytest.mark.parametrize("after", [None, ProcessFailed("crash", "died"), ProcessFailed("skipped", "grouped queries")])
def test_a_wrong_case_is_told_whatever_becomes_of_the_next_call(monkeypatch, after):
    proof, went = proof_of(monkeypatch, [RIGHT, INACCURATE, RIGHT, RIGHT], [None, None, after, None])
    assert (proof.check, proof.cases) == ("inaccurate", 2) and "case 1" in proof.evidence
    assert "call 3" not in went and "judge 2" not in went, "nor is it gone on with for long"


def test_a_crash_is_told_of_its_own_case_once_those_before_were_right(monkeypatch):
    with pytest.raises(ProcessFailed, match=r"died \[case 2, seed 0\]"):
        proof_of(monkeypatch, [RIGHT] * 4, [None, None, ProcessFailed("crash", "died"), None])


def test_a_last_case_that_is_wrong_is_seen(monkeypatch):
    proof, _ = proof_of(monkeypatch, [RIGHT, RIGHT, RIGHT, INACCURATE], [None] * 4)
    assert proof.check == "inaccurate" and "case 3" in proof.evidence


def test_of_a_look_no_more_is_called_than_is_asked_for(monkeypatch):
    proof, went = proof_of(monkeypatch, [RIGHT] * 4, [ProcessFailed("skipped", "x"), None, None, None], most=1)
    assert proof.cases == 1 and went == ["call 0", "call 1", "judge 1"]
