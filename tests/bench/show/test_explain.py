"""What explain says about a layer comes from its contract, its variants and the runs of this machine."""

import json
from typing import Any

import pytest

from bench import explain as command
from bench.cli import CannotGoOn
from bench.records import read
from bench.records.run import Run
from bench.show import explain
from reference import contract
from tests.bench.show.test_report import row


@pytest.mark.parametrize("layer", ("attention", "adamw"))
def test_every_layer_can_be_explained(layer, capsys):
    assert command.main([layer]) == 0
    said = capsys.readouterr().out
    spec = contract.pass_of(contract.load(layer), "forward")
    assert all(f" {t.name} " in said for t in spec.tensors()) and "def forward(" in said and "cpu.naive" in said


def test_one_variant_shows_its_whole_docstring(capsys):
    assert command.main(["attention.cpu.flash"]) == 0
    said = capsys.readouterr().out
    assert "Scratch is O(T) a thread" in said and "torch.sdpa_math" not in said


def test_ranks_come_from_the_latest_runs_of_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explain, "HOME", tmp_path)
    for name, seconds in (("first", {"cpu.simd": 2e-3, "torch.eager": 3e-3}), ("second", {"cpu.simd": 4e-3})):
        run = Run.create("layer", tmp_path / "runs" / name)
        for variant, s in seconds.items():
            run.append(row(variant, seconds=s))
        run.close()
    other = tmp_path / "results" / "elsewhere"
    run = Run.create("layer", other)
    run.append(row("cpu.simd", seconds=1e-9))
    run.close()
    environment = json.loads((other / read.ENVIRONMENT).read_text())
    environment["cpu"]["model"] = "another"
    (other / read.ENVIRONMENT).write_text(json.dumps(environment))
    assert command.main(["gelu", "--json"]) == 0
    ranks = json.loads(capsys.readouterr().out)["ranks"]
    assert [(r["variant"], r["median_s"]) for r in ranks] == [("torch.eager", 3e-3), ("cpu.simd", 4e-3)]
    assert command.main(["gelu"]) == 0
    said = capsys.readouterr().out
    assert "timed in runs/first, 20" in said and "timed in runs/second, 20" in said and "elsewhere" not in said


@pytest.mark.parametrize(("layer", "elsewhere"), [("gelu", True), ("layernorm", False)])
def test_a_layer_that_no_step_calls_says_so(layer, elsewhere, capsys):
    assert command.main([layer]) == 0
    assert ("0 calls: gpt2-124m's step" in capsys.readouterr().out) == elsewhere


@pytest.mark.parametrize(
    ("what", "said"), [("gleu", "did you mean 'gelu'"), ("gelu.cpu.smid", "did you mean 'cpu.simd'")]
)
def test_names_that_are_not_there(what, said):
    with pytest.raises(CannotGoOn, match=said):
        command.main([what])


@pytest.fixture
def timed_here(tmp_path, monkeypatch):
    """Writes a run of this machine; gelu's floor is 0.5 ms."""
    monkeypatch.setattr(explain, "HOME", tmp_path)

    def write(name: str, more: dict[str, Any] | None = None, **seconds: float) -> None:
        run = Run.create("layer", tmp_path / "runs" / name)
        for variant, s in seconds.items():
            run.append(row(variant.replace("_", "."), seconds=s, **(more or {})))
        run.close()

    return write


def ladder(said: str, title: str) -> list[list[str]]:
    """The words of each row of a table."""
    lines = said.split(title)[1].splitlines()
    rows = [line.split() for line in lines[lines.index(next(x for x in lines if "──" in x)) + 1 :]]
    return rows[: next((i for i, words in enumerate(rows) if words[:1] == ["floor"]), len(rows)) + 1]


def test_variants_stand_by_rank_and_end_at_the_floor(timed_here, capsys):
    timed_here("one", cpu_naive=9e-3, torch_eager=3e-3, cpu_simd=1e-3)
    assert command.main(["gelu"]) == 0
    rows = [words for words in ladder(capsys.readouterr().out, "by rank") if words]
    assert [words[:2] for words in rows[:-1]] == [["1", "cpu.simd"], ["2", "torch.eager"], ["3", "cpu.naive"]]
    assert rows[0][2:5] == ["1", "ms", "2x"] and rows[-1][:4] == ["floor", "500", "µs", "1x"]


def test_a_noisy_run_ranks_nobody(timed_here, capsys):
    timed_here("noisy", dict(noise_floor=1.21), torch_eager=3e-3, cpu_simd=1e-3)
    timed_here("quiet", torch_eager=3e-3)
    assert command.main(["gelu"]) == 0
    rows = [words for words in ladder(capsys.readouterr().out, "by rank") if words]
    assert rows[0][:2] == ["1", "torch.eager"] and rows[1][:2] == ["–", "cpu.simd"]
    assert "this run ranks nothing" in " ".join(rows[1])


def test_times_at_other_sizes_are_no_ranks(timed_here, capsys):
    timed_here("large", torch_eager=3e-3)
    timed_here("small", dict(shape={"N": 16}), cpu_simd=1e-6)
    assert command.main(["gelu"]) == 0
    said = capsys.readouterr().out
    assert "gpt2-124m N=16 fp32: by rank" in said and "gpt2-124m N=1024 fp32: by rank" in said


def test_prose_is_broken_for_the_terminal_and_not_where_its_source_was():
    text = "One sentence that\ngoes on.\n\nAnother\nparagraph:\n    a formula\n- an item\n- the next\n"
    told = "One sentence that goes on.\n\nAnother paragraph:\n    a formula\n- an item\n- the next"
    assert explain.flowing(text) == told
