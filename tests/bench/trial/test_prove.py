"""What the cases of a proof come to, with verdicts that are made up."""

from types import SimpleNamespace

import pytest

from bench.core.case import Case
from bench.core.variants import discover, find
from bench.trial import prove as proving
from bench.trial import truth
from bench.trial.checks import Verdict
from bench.trial.prove import Proof
from bench.trial.room import Setting

CASE = Case("residual", "forward", {"N": 7, "dtype": "fp32"}, "ragged 0", seed=4)
EAGER = find(discover(), "residual", "torch.eager")
JUDGE = SimpleNamespace(prepare=lambda cases, yardstick: None)


def off(times: float, check: str = "inaccurate") -> Verdict:
    return Verdict(check, f"{times:g}x", times * truth.K)


def proved(monkeypatch, *verdicts: Verdict) -> tuple[Proof, list[int]]:
    """A proof of one case whose draws come to these, and the seeds that were drawn."""
    left, seeds = list(verdicts), []

    def tried(variant, case, *_):
        seeds.append(case.seed)
        return left.pop(0), dict(counts={}, notes=[], seconds=0.0)

    monkeypatch.setattr(proving, "_tried", tried)
    monkeypatch.setattr(proving.source, "foreign", lambda variant: [])
    proof = Proof(EAGER, "forward", "fp32")
    proving._prove_phase(proof, [CASE], SimpleNamespace(), JUDGE, EAGER, Setting(), lambda _: None)  # type: ignore[arg-type]
    assert not left
    return proof, seeds


def test_an_error_near_the_limit_that_no_other_draw_has_is_told_and_passes(monkeypatch):
    proof, seeds = proved(monkeypatch, off(1.1), Verdict(ratio=1.0), Verdict(ratio=2.0))
    assert proof.ok and proof.ratio == 1.1 * truth.K, "the row shows the worst, whatever came of it"
    assert len(set(seeds)) == 3 and seeds[0] == CASE.seed
    assert proof.notes == ["ragged 0, seed 4: 1.1x; in 2 further draws at most 2x, so one draw's luck"]


@pytest.mark.parametrize("further", [[off(1.05)], [Verdict(ratio=1.0), off(3)], [Verdict(), off(9, "not_finite")]])
def test_an_error_that_another_draw_has_too_is_wrong(monkeypatch, further):
    proof, seeds = proved(monkeypatch, off(1.1), *further)
    assert proof.status == "wrong" and proof.check == "inaccurate"
    assert (
        proof.evidence.startswith("inaccurate: 1.1x; drawn again with seed ") and "[ragged 0, seed 4]" in proof.evidence
    )
    assert str(seeds[-1]) in proof.evidence and further[-1].evidence in proof.evidence


@pytest.mark.parametrize("verdict", [off(4.1), off(1, "unwritten"), off(float("nan")), off(1, "not_finite")])
def test_what_no_luck_explains_is_wrong_at_once(monkeypatch, verdict):
    proof, seeds = proved(monkeypatch, verdict)
    assert proof.status == "wrong" and seeds == [CASE.seed]
