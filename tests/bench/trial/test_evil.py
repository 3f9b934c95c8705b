"""Every cheating or broken variant of tests/evil is caught, and by the check that is meant to catch it."""

import ast

import pytest

from bench import HOME
from bench.core import variants
from bench.core.case import Case
from bench.trial import prove, race
from bench.trial.judge import Judge
from bench.trial.room import Setting
from reference import contract

EVIL = HOME / "tests" / "evil"
SETTING = Setting(threads=2, time_limit=6)
SEEDS = [0, 1]

ALL = variants.discover((EVIL,))
VARIANTS = [v for v in ALL if v.path.is_relative_to(EVIL)]


def constants(variant: variants.Variant) -> dict[str, str]:
    """CAUGHT_BY, the check; CAUGHT_IN, proof (the default) or timing."""
    found = {"CAUGHT_IN": "proof"}
    for node in ast.parse(variant.path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            assert isinstance(node.targets[0], ast.Name)
            found[node.targets[0].id] = str(node.value.value)
    return found


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def yardstick(layer: str) -> variants.Variant:
    return variants.find(ALL, layer, "torch.eager")


def proofs_of(variant: variants.Variant, judge: Judge) -> list[prove.Proof]:
    if reason := variants.unavailable(variant, "cpu", "fp32"):
        pytest.skip(reason)
    phases = tuple(p for p in contract.PHASES if variant.has(p))
    return list(prove.prove(variant, phases, "fp32", SEEDS, judge, SETTING, yardstick(variant.layer)))


def test_there_are_enough_of_them():
    assert len(VARIANTS) >= 16


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.layer}-{v.name}")
def test_evil_variant_is_caught(variant, judge):
    expected = constants(variant)
    found = proofs_of(variant, judge)
    if expected["CAUGHT_IN"] == "proof":
        seen = found[-1].check if found[-1].status == "wrong" else found[-1].status
        assert seen == expected["CAUGHT_BY"], found[-1].evidence
        assert found[-1].evidence
        return
    assert all(p.ok for p in found), "this one must pass the proof: it is caught when it is timed"
    phase = found[-1].phase
    case = Case(variant.layer, phase, {"N": 40_000, "dtype": "fp32"}, "timed", seed=3)
    effort = race.Effort(seconds=0.5, seed=5)
    raced = race.race(case, [yardstick(variant.layer), variant], yardstick(variant.layer), judge, SETTING, effort)
    cheat = raced.contestants[-1]
    assert cheat.status == "wrong"
    assert cheat.evidence.startswith(f"{expected['CAUGHT_BY']} in a timed call"), cheat.evidence
    assert raced.contestants[0].running, "the honest baseline goes on"


def test_honest_variants_pass_the_same_proof(judge):
    for layer in ("residual", "layernorm"):
        found = proofs_of(yardstick(layer), judge)
        assert [p.status for p in found] == ["ok"] * len(found)
        assert all(0 < p.ratio <= 4 for p in found)
