"""Proofs that are taken over: on the same grounds alone, and none that is damaged, forged by seed, or a mere look."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import CANNOT_RUN
from bench.core.variants import Variant, discover, find
from bench.layer import parser
from bench.records import read
from bench.trial import ledger, session
from bench.trial.ledger import Ledger, grounds
from bench.trial.plan import Plan, plan_of
from bench.trial.prove import Proof, cases_for
from bench.trial.room import Setting

SETTING = Setting("cpu")
TIMED = [{"N": 1000}]

MINE = '''\
"""Adds."""

import torch

def forward(a, b, *, out):
    torch.add(a, b, out=out)
'''


@pytest.fixture
def mine(tmp_path) -> Variant:
    file = tmp_path / "kernels" / "torch" / "residual" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(MINE)
    return find(discover((tmp_path / "kernels",)), "residual", "torch.mine")


def proof(v: Variant, **fields) -> Proof:
    n = len(cases_for(v, "forward", "fp32", [0, 7], TIMED, SETTING))
    return Proof(v, "forward", "fp32", **{"ratio": 0.5, "cases": n, "cases_all": n, "seeds": [0, 7], **fields})


def kept(v: Variant, folder: Path, made: Proof, yardstick: Variant | None = None) -> Ledger:
    one = Ledger(folder, SETTING)
    one.keep(made, TIMED, yardstick, grounds(v, "forward", "fp32", SETTING, yardstick))
    return one


def test_a_proof_comes_back_as_it_was(mine, tmp_path):
    one = kept(mine, tmp_path / "proofs", proof(mine))
    assert one.find(mine, "forward", "fp32", TIMED, None) == proof(mine)
    wrong = proof(mine, status="wrong", check="inaccurate", evidence="inaccurate: far off")
    one = kept(mine, tmp_path / "proofs", wrong)
    assert one.find(mine, "forward", "fp32", TIMED, None) == wrong, "the later one, and as wrong as it was"


def test_whatever_it_rests_on_has_changed_it_is_made_again(mine, tmp_path, monkeypatch):
    eager = find(discover(), "residual", "torch.eager")
    one = kept(mine, tmp_path / "proofs", proof(mine))

    def found(one: Ledger = one, phase: str = "forward", dtype: str = "fp32", timed=TIMED, yardstick=None) -> bool:
        return one.find(mine, phase, dtype, timed, yardstick) is not None

    assert found()
    assert not found(dtype="bf16") and not found(phase="backward")
    assert not found(timed=[{"N": 2000}]), "slices of what is timed are proved too"
    assert not found(yardstick=eager)
    for setting in (replace(SETTING, device="cuda:1"), replace(SETTING, threads=3), replace(SETTING, simulate=True)):
        assert not found(Ledger(one.folder, setting))
    for what in ("_harness", "_machine"):
        with monkeypatch.context() as patched:
            patched.setattr(ledger, what, lambda *_: "another")
            assert not found()
    helper = mine.path.parent.parent.parent / "helper.py"
    helper.write_text("FACTOR = 2")
    assert not found(), "a variant from outside may import what lies beside it"
    helper.unlink()
    assert found()
    mine.path.write_text(MINE.replace("Adds", "Adds well"))
    assert not found()


def test_the_machine_is_its_versions_its_gpus_and_what_compilers_read(monkeypatch):
    def machine(gpu: bool, **changes) -> str:
        base = {"versions": {"torch": "2.11"}, "gpus": [{"name": "A"}], "threads": {"torch": 4}, "cpu": {"model": "x"}}
        monkeypatch.setattr(ledger, "environment", lambda: base | changes)
        ledger._machine.cache_clear()
        return ledger._machine(gpu)

    try:
        same = machine(True)
        assert machine(True, versions={"torch": "2.12"}) != same != machine(True, gpus=[{"name": "B"}])
        assert machine(True, threads={"torch": 8}) == same, "proofs on a GPU run side by side"
        assert machine(False, threads={"torch": 8}) != machine(False)
        monkeypatch.setenv("LAYERBENCH_CACHE", "/elsewhere")
        assert machine(True) == same
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
        assert machine(True) != same
    finally:
        ledger._machine.cache_clear()


def test_what_is_damaged_or_of_other_cases_counts_as_none(mine, tmp_path):
    one = kept(mine, tmp_path / "proofs", proof(mine))
    (file,) = one.folder.iterdir()
    good = json.loads(file.read_text())

    def found(document: object) -> Proof | None:
        file.write_text(document if isinstance(document, str) else json.dumps(document))
        return one.find(mine, "forward", "fp32", TIMED, None)

    assert found(good)
    assert not found("{") and not found([]) and not found({"proof": good["proof"]}) and not found('{"proof": 3}')
    assert not found(good | {"proof": good["proof"] | {"seeds": [0, 8]}}), "cases are drawn by their seeds"
    assert not found(good | {"proof": good["proof"] | {"seeds": []}})
    n = good["proof"]["cases"]
    for part in ({"cases": n - 1}, {"cases_all": n + 1, "cases": n + 1}, {"check": "inaccurate"}, {"status": "fine"}):
        assert not found(good | {"proof": good["proof"] | part}), part
    lacks = {"cases": n - 1, "unsupported": ["grouped queries"]}
    assert found(good | {"proof": good["proof"] | lacks})


def test_what_changed_meanwhile_what_was_simulated_and_what_had_no_room_is_not_kept(mine, tmp_path):
    one = Ledger(tmp_path / "proofs", SETTING)
    before = grounds(mine, "forward", "fp32", SETTING, None)
    one.keep(proof(mine, status="error", evidence="CUDA out of memory: 2 GB [ragged 0, seed 0]"), TIMED, None, before)
    simulated = proof(mine)
    simulated.by_simulator = True
    one.keep(simulated, TIMED, None, before)
    mine.path.write_text(MINE.replace("Adds", "Writes its own source anew"))
    one.keep(proof(mine), TIMED, None, before)
    assert not one.folder.exists()


# --- in a session ---

QUICK = ("residual", "--only", "torch.eager", "-a", "B=1", "-a", "T=64", "--seconds", "0.3", "--cache", "warm")


def planned(out: Path, *more: str) -> Plan:
    arguments = [*QUICK, *more, "--out", str(out)]
    return plan_of(**vars(parser().parse_args(arguments)), argv=arguments)


def test_what_was_proved_is_timed_without_a_second_proof(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERBENCH_REPORT", "0")
    proofs = ("--proofs", str(tmp_path / "proofs"))
    asked: list[tuple[str, ...]] = []
    prove = session.prove

    def counted(variant, phases, *rest, **more):
        asked.append(phases)
        return prove(variant, phases, *rest, **more)

    monkeypatch.setattr(session, "prove", counted)
    assert session.Session(planned(tmp_path / "check", "--check-only", *proofs)).run() == 0
    assert session.Session(planned(tmp_path / "time", *proofs)).run() == 0
    assert session.Session(planned(tmp_path / "again", "--check-only", *proofs)).run() == 0
    assert asked == [("forward",), (), ()]
    rows = {name: read.read_records(tmp_path / name)[0] for name in ("check", "time", "again")}
    (check,), timed, (again,) = rows["check"], [r for r in rows["time"] if not r["control"]], rows["again"]
    assert {r["status"] for r in (check, *timed, again)} == {"ok"} and timed[0]["median_s"] > 0
    assert timed[0]["seeds"] == check["seeds"] == again["seeds"], "a row tells the seeds that it was proved with"
    assert timed[0]["proof_cases"] == check["proof_cases"] == check["proof_cases_all"] > 3
    more = plan_of(**vars(parser().parse_args([*QUICK, *proofs, "--resume", str(tmp_path / "time")])), argv=[])
    assert session.Session(more).run() == 0, "in one process, one after the other"
    assert read.read_records(tmp_path / "time")[0] == rows["time"], "nothing is raced again"
    session.Session(planned(tmp_path / "other", "--check-only", *proofs, "-a", "dtype=bf16")).run()
    assert asked[-1] == ("forward",), "of another dtype nothing was proved"


def test_a_look_is_no_proof_and_its_row_says_so(tmp_path):
    proofs = tmp_path / "proofs"
    one = session.Session(
        planned(tmp_path / "smoke", "--smoke", "--proofs", str(proofs), "--only", "torch.eager,torch.compile")
    )
    assert one.run() == CANNOT_RUN, "torch.compile was named, and had no look"
    row, slow = sorted(read.read_records(tmp_path / "smoke")[0], key=lambda r: r["variant"] == "torch.compile")
    assert slow["status"] == "skipped" and slow["proof_cases"] == 0 and "compiles" in slow["evidence"]
    assert row["status"] == "skipped" and "no proof" in row["evidence"] and row["shape_name"] == "smoke"
    assert row["proof_cases"] == 1 and "--smoke" in row["reproduce"] and not proofs.exists()
