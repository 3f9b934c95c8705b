"""Kernels are picked as bench.e2e picks them, and are the same for all ranks and after a resume."""

import json

import pytest

from bench import cli
from bench.cli import CannotGoOn
from bench.trainer import build
from bench.trainer.plan import race_of
from bench.training.plan import Plan
from tests.bench.trainer.runs import SMALL


def race(kernels: str) -> Plan:
    return race_of(SMALL, kernels=kernels, B=2, T=8, dtype="fp32", device="cpu", threads=1)


def test_where_one_may_serve_nothing_is_raced(monkeypatch):
    monkeypatch.setattr(build, "Field", None)
    choice, note = build.choose_kernels(race("torch.eager,matmul/fc=cpu.naive"))
    names = {str(id): v.name for id, v in choice.items()}
    assert names["matmul/fc backward"] == "cpu.naive"
    assert set(names.values()) == {"torch.eager", "cpu.naive"}
    assert note == ""


def test_where_several_may_a_race_decides():
    """In a process of its own; the named ones stay."""
    plan = race("torch.eager,global_norm=cpu")
    choice, _ = build.choose_kernels(plan)
    assert choice.keys() == plan.calls.keys()
    assert {v.backend for id, v in choice.items() if id.layer == "global_norm"} == {"cpu"}
    assert {v.name for id, v in choice.items() if id.layer != "global_norm"} == {"torch.eager"}


def test_other_ranks_take_the_first_ones_choice_or_refuse():
    plan = race("torch.eager")
    choice, _ = build.choose_kernels(plan)
    told = dict(build.names(choice))
    assert build.named(plan, told) == choice
    told["attention forward"] = (told["attention forward"][0], "another source")
    with pytest.raises(CannotGoOn, match="attention forward is another file here") as caught:
        build.named(plan, told)
    assert caught.value.code == cli.CANNOT_RUN


def test_a_choice_is_written_and_taken_again(tmp_path):
    plan = race("torch.eager,matmul/fc=cpu.naive")
    choice, _ = build.choose_kernels(plan)
    build.write_choice(tmp_path, plan, choice)
    again, note = build.choose_kernels(race(build.again("fastest", tmp_path)))
    assert again == choice
    assert "run train" in note
    file = tmp_path / "kernels.json"
    said = json.loads(file.read_text())
    said["kernels"]["adamw forward"]["source"] = "changed"
    file.write_text(json.dumps(said))
    wanted = build.again("fastest", tmp_path) + ",adamw=torch.eager"
    _, note = build.choose_kernels(race(wanted))
    assert "not used" not in note  # it is named
    assert build.again("fastest", tmp_path / "nowhere") == "fastest"
    (tmp_path / "mine").mkdir()
    assert build.again(f"cpu,{tmp_path / 'mine'}", tmp_path) == f"{tmp_path / 'mine'}/,{file}"
