"""Every cheating or broken variant of tests/evil is caught, and by the check that is meant to catch it."""

import json
import statistics
import subprocess
from dataclasses import replace
from itertools import chain

import pytest

from bench import HOME
from bench.core import variants
from bench.core.case import Case
from bench.trial import prove, race
from bench.trial.judge import Judge
from bench.trial.room import Setting
from reference import contract
from tests import on_machine
from tools import cheats

SETTING = Setting(threads=2, time_limit=20, prepare_limit=60)
PATIENCE_S = 0.8  # with those that never come back
SEEDS = [0, 1]
SECONDS = 0.15  # of a race, for each contestant
ATTEMPTS = 3  # races of those that seem to have gained something
GAIN = 0.8  # of an honest variant's time: whoever takes less than this has gained something
LONGEST_EVIDENCE = 4200  # characters

# Small, aligned, and larger than any ragged shape of the proof.
SHAPES: dict[str, dict] = {
    "residual": dict(N=120_000),
    "gelu": dict(N=120_000),
    "layernorm": dict(B=2, T=64, C=768, eps=1e-5, dresidual=False),
    "matmul": dict(M=192, N=192, K=1024, epilogue="bias", dgelu=False),
    "softmax": dict(R=48, S=2048, causal=False),
    "attention": dict(B=1, T=256, NH=2, NKV=2, HS=64, causal=True),
    "cross_entropy": dict(B=2, T=16, V=2000, VP=2048),
    "global_norm": dict(tensors=[(768, 256), (768,)]),
    "q8_quantise": dict(M=200, K=768, G=64, KG=12),
    "decode_attention": dict(B=1, T=1, NH=2, NKV=2, H=6, HS=64, S=2560),
}

ALL = variants.discover((cheats.EVIL,))
EVIL = [v for v in ALL if v.path.is_relative_to(cheats.EVIL)]
CHEATS = {v: cheats.read(v.path) for v in EVIL}
TIMED = [v for v in EVIL if "timing" in CHEATS[v].caught_in]
SABOTEURS = [v for v in EVIL if "session" in CHEATS[v].caught_in]


@pytest.fixture(scope="module")
def judge():
    with Judge(1) as judge:
        yield judge


@pytest.fixture(scope="module")
def proved(judge):
    """Proofs of variants, each worked out once."""
    known = {}

    def proofs(variant):
        if variant not in known:
            known[variant] = proofs_of(variant, judge)
        return known[variant]

    return proofs


def name_of(variant: variants.Variant) -> str:
    return f"{variant.layer}-{variant.name}"


def yardstick(layer: str) -> variants.Variant:
    return variants.find(ALL, layer, "torch.eager")


def proofs_of(variant: variants.Variant, judge: Judge) -> list[prove.Proof]:
    dtype = variant.dtypes[0]
    if reason := variants.unavailable(variant, "cpu", dtype):
        pytest.skip(reason)
    setting, cheat = SETTING, CHEATS.get(variant)
    if cheat and "timeout" in cheat.caught_by:
        setting = replace(setting, time_limit=PATIENCE_S, prepare_limit=PATIENCE_S)
    if cheat and cheat.threads:
        setting = replace(setting, threads=cheat.threads)
    phases = tuple(p for p in contract.PHASES if variant.has(p))
    # Slices of what is timed are proved too; what only the clock is to catch must get by without them.
    timed = {p: [timed_shape(variant, p)] for p in phases} if cheat and cheat.caught_in == ("proof", "timing") else {}
    for thorough in (False, True):  # most are caught by few cases
        known = prove.prove(
            variant, phases, dtype, SEEDS, judge, setting, yardstick(variant.layer), timed=timed, thorough=thorough
        )
        found = list(known)
        if seen_in(found)[0] != "ok" or cheat is None or "proof" not in cheat.caught_in:
            break
    return found


def timed_shape(variant: variants.Variant, phase: str) -> dict:
    shape = SHAPES[variant.layer] | CHEATS[variant].shape
    return contract.overwriting(contract.load(variant.layer), phase, shape, variant.dtypes[0])


def seen_in(proofs: list[prove.Proof]) -> tuple[str, str]:
    """What the proof said first that is not "ok", and its evidence."""
    for proof in proofs:
        if not proof.ok:
            seen = proof.check if proof.status == "wrong" else proof.status
            return seen.replace(" ", "_"), proof.evidence
    return "ok", ""


def check_evidence(evidence: str) -> None:
    """There is some, of a length that can be read, and it can be written to any file and terminal."""
    assert evidence and len(evidence) <= LONGEST_EVIDENCE
    assert evidence.encode() and not any(ord(c) < 32 and c not in "\n\t" for c in evidence)


def test_there_are_enough_of_them():
    assert len(EVIL) >= 100


def marked(variant: variants.Variant) -> object:
    """One more of a kind is for the slow set."""
    return pytest.param(variant, marks=pytest.mark.slow) if CHEATS[variant].slow else variant


@pytest.mark.parametrize("variant", [marked(v) for v in EVIL if v not in SABOTEURS], ids=name_of)
def test_evil_variant_is_caught(variant, proved):
    cheat = CHEATS[variant]
    seen, evidence = seen_in(proved(variant))
    if cheat.caught_in == ("proof",):
        assert seen in cheat.caught_by, evidence
    else:
        assert seen in ("ok", *cheat.caught_by), evidence
    if seen != "ok":
        check_evidence(evidence)


def race_of(variant: variants.Variant) -> tuple:
    """What cheats must have in common to be timed in one race: layer, phase, shape, dtype and threads."""
    cheat = CHEATS[variant]
    phase = "forward" if variant.has("forward") else "backward"
    return variant.layer, phase, json.dumps(timed_shape(variant, phase)), cheat.threads


def races() -> list:
    """The keys of all races; one in which only cheats of the slow set take part is for that."""
    fast = {race_of(v) for v in TIMED if not CHEATS[v].slow}
    keys = sorted({race_of(v) for v in TIMED})
    return [key if key in fast else pytest.param(key, marks=pytest.mark.slow) for key in keys]


@pytest.mark.parametrize("key", races(), ids=lambda k: "-".join(map(str, k[:3])))
def test_evil_variants_are_caught_when_they_are_timed(key, judge, proved):
    """Each by its check, and the honest baseline of the same race goes on."""
    layer, phase, shape, threads = key
    racing = [v for v in TIMED if race_of(v) == key]
    racing = [v for v in racing if CHEATS[v].caught_in == ("timing",) or seen_in(proved(v))[0] == "ok"]
    case = Case(layer, phase, json.loads(shape), "timed", 3)
    setting = replace(SETTING, threads=threads or SETTING.threads)
    missed: dict = {}
    for attempt in range(ATTEMPTS):
        effort = race.Effort(seconds=SECONDS * (len(racing) + 2) * (1 + attempt), seed=5 + attempt)
        raced = race.race(case, [yardstick(layer), *racing], yardstick(layer), judge, setting, effort)
        honest = raced.contestants[0]
        assert honest.running and raced.contestants[1].running, honest.evidence
        missed = {c.label: said for c in raced.contestants[2:] if (said := missed_by(c, honest))}
        # On a busy machine few and short samples can look like a gain; whoever gains, gains every time. Who cheats in
        # every second second is missed by a race of few seconds now and then.
        racing = [v for v in racing if v.name in missed]
        if not missed or any("no_gain" not in CHEATS[v].caught_by and not CHEATS[v].at_times for v in racing):
            break
    assert not missed, missed


def missed_by(c: race.Contestant, honest: race.Contestant) -> str:
    """What is not as it should be of a cheat after its race; nothing where it was caught."""
    expected = CHEATS[c.variant].caught_by
    if c.running:
        return gained(c, honest) if "no_gain" in expected else f"not caught; gained {gained(c, honest) or 'nothing'}"
    check_evidence(c.evidence)
    seen = c.evidence.split()[0].rstrip(":") if c.status == "wrong" else c.status
    return "" if seen in expected else f"{c.status}: {c.evidence}"


def gained(c: race.Contestant, honest: race.Contestant) -> str:
    """How much faster it usually is than the honest one is at its best; nothing where that is no faster."""
    for cache in filter(honest.samples.__contains__, c.samples):  # who is slow on a busy machine has no warm ones
        took = statistics.median(chain.from_iterable(c.samples[cache]))
        takes = min(chain.from_iterable(honest.samples[cache]))
        if took < GAIN * takes:
            return f"{takes / took:.2f}x, {cache}"
    return ""


# A run that times proves before.
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["--check-only"], id="proved", marks=pytest.mark.slow),
        pytest.param(["--seconds", "0.4"], id="timed"),
    ],
)
def test_sabotage_costs_the_guilty_row_and_no_other(how, tmp_path):
    """One run of saboteurs and of honest variants, before and behind them."""
    names = ["torch.eager", *sorted(v.name for v in SABOTEURS), "cpu.naive"]
    what = ("residual", "--kernels", cheats.EVIL, "--only", ",".join(names), "-a", "B=1", "-a", "T=8")
    command = on_machine.command("layer", *what, *how, "--out", tmp_path / "run", "--json")
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    rows = {r["variant"]: r for r in json.loads(done.stdout.splitlines()[-1])["records"] if not r["control"]}
    assert set(rows) == set(names)
    for variant in SABOTEURS:
        row = rows.pop(variant.name)
        seen = row["evidence"].split()[0].rstrip(":") if row["status"] == "wrong" else row["status"]
        assert seen in CHEATS[variant].caught_by, row["evidence"]
        check_evidence(row["evidence"])
    assert {name: r["status"] for name, r in rows.items()} == dict.fromkeys(rows, "ok")


def test_honest_variants_pass_the_same_proof(judge):
    for layer in ("residual", "layernorm"):
        found = proofs_of(yardstick(layer), judge)
        assert [p.status for p in found] == ["ok"] * len(found)
        assert all(0 < p.ratio <= 4 for p in found)
