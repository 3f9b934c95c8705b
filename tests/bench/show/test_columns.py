"""What a row says: in what it is right, where it is not right in all, and what was seen beside."""

import json

import pytest

from bench.show import markdown, report
from bench.show.columns import COLUMNS, check_text, evidence_text
from bench.show.explain import Timed, ordered, rank_of
from bench.show.points import time_rows
from bench.show.terminal import Screen
from bench.show.texts import coverage_text, speed_text
from tests.bench.show.test_report import row

HINT = "nondeterministic: lanes differ in the last bit; enable_fp_fusion=False"


@pytest.fixture
def part():
    """Faster than all others, and right in seven of nine cases."""
    return row("cpu.quick", seconds=1e-4) | dict(
        proof_cases=7, proof_cases_all=9, not_supported=["grouped queries"], notes=[HINT]
    )


def test_a_partial_row_says_of_how_many_cases_and_what_is_missing(part):
    assert check_text(part) == "ok for 7 of 9 cases; not: grouped queries; error 1.2x"
    assert check_text({**part, "status": "simulated", "error_ratio": None}).startswith("simulated for 7 of 9 cases")
    assert COLUMNS["proof_cases"].told([part]) == "7 of 9"
    assert evidence_text(part) == f"for 7 of 9 cases; not: grouped queries; {HINT}"
    assert speed_text(part) == "–", "PyTorch's entry covers what this one does not"


def test_of_many_things_some_are_told(part):
    assert coverage_text({**part, "not_supported": list("abcde")}).endswith("not: a, b, c, 2 more")


def test_a_whole_row_and_an_old_one_say_what_they_always_did():
    old, whole = row("cpu.simd"), row("cpu.simd", proof_cases_all=8, not_supported=[], notes=[], compared="whole")
    for r in (old, whole):
        assert (check_text(r), evidence_text(r), speed_text(r)) == ("ok 1.2x", "", "2.00x")
        assert COLUMNS["proof_cases"].told([r]) == "8"


def test_a_failure_says_what_failed_and_nothing_of_what_it_lacks(part):
    assert check_text({**part, "status": "wrong", "evidence": "inaccurate"}) == "wrong: inaccurate"


def test_the_terminal_sets_it_apart_below_the_others_with_its_notes(part, capsys):
    rows = [part, row("cpu.simd", seconds=1e-3, compared="whole")]
    screen = Screen()
    screen.timings("gelu", [], rows, ("cold",), False)
    screen.proofs("gelu", "forward", "fp32", rows)
    screen.footer(rows, None)
    timed, _, proved = capsys.readouterr().out.partition("gelu forward fp32: proof")
    assert timed.index("cpu.simd") < timed.index("cpu.quick"), "the faster one is no equal"
    assert "for 7 of 9" in timed and f"cpu.quick: {HINT}" in timed and "outputs compared: whole" in timed
    assert "7 of 9" in proved and "1 ok, 1 ok in part" in proved


def test_documents_tell_it_and_never_call_it_the_fastest(part):
    rows = [part, row("cpu.simd", seconds=1e-3), row("torch.eager", seconds=2e-3)]
    assert "cpu.quick" not in markdown.layers(rows)
    assert "ok for 7 of 9 cases; not: grouped queries" in markdown.variants(rows, "gelu", "forward")
    counted = markdown.counted([{**part, "status": "simulated", "dtype": "fp32"}], "fp32", "gelu")
    assert "1.2x for 7 of 9 cases; not: grouped queries" in counted


def test_charts_tell_it_and_ranks_leave_it_out(part):
    whole = row("cpu.simd", seconds=1e-3)
    texts = {point["variant"]: point["text"] for point in time_rows([part, whole])}
    assert texts == {"cpu.quick": "100 µs  7 of 9 cases", "cpu.simd": "1 ms  2.00x"}
    found = [Timed(part, "run"), Timed(whole, "run")]
    assert [(t.record["variant"], rank_of(t, found)) for t in ordered(found)] == [("cpu.simd", "1"), ("cpu.quick", "–")]


def test_the_page_tells_it(part, tmp_path):
    counted = {**part, "case_id": "c", "variant": "cuda.quick", "status": "simulated", "phase": "backward"}
    rows = [part, row("cpu.simd", seconds=1e-3, compared="whole"), row("torch.eager", seconds=2e-3), counted]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps({"schema": 1, **r}) + "\n" for r in rows))
    page = report.Page(report.read_runs([tmp_path]))
    assert [best.row["variant"] for best in page.best] == ["cpu.simd"]
    (layer,) = page.layers
    case = layer.cases[0]
    lines = [line for table in case.tables for line in table.lines]
    told = [cell.text for line in lines if line.variant == "cpu.quick" for cell in line.cells]
    assert "ok for 7 of 9 cases; not: grouped queries; error 1.2x" in told and HINT in told
    assert "outputs compared: whole" in case.facts
    assert case.ladder and [rung.variant for rung in case.ladder.rungs] == ["cpu.simd", "the floor"]
    assert "cpu.quick (7 of 9 cases)" in case.ladder.said[0]
    table = layer.counted[0]
    (line,) = table.lines
    assert "simulated for 7 of 9 cases; not: grouped queries; error 1.2x" in [cell.text for cell in line.cells]
    assert len(table.columns) == len(line.cells)
