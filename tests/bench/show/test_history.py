"""A layer's times over result sets: the right order, machine by machine, and what is within the noise."""

import json

import pytest

from bench import history
from bench.cli import FAILED, USAGE, CannotGoOn
from tests.compare_runs import ENVIRONMENT, failure, layer_record, write_run


def result_set(results, name, started, ms, machine="A CPU", **fields):
    """A result set in which cpu.simd took so many milliseconds, and torch.eager 5."""
    records = []
    for variant, seconds in (("cpu.simd", ms / 1e3), ("torch.eager", 5e-3)):
        samples = [[seconds * x] for x in (0.99, 1.0, 1.0, 1.0, 1.01)]
        more = {"cache": "cold", "noise_floor": 0.05, **fields}
        records.append(layer_record(variant, samples, [0] * 5, "gpt2-124m", **more))
    records.append(failure("cpu.bad", case_id="bad"))
    environment = {**ENVIRONMENT, "cpu": {**ENVIRONMENT["cpu"], "model": machine}}
    folder = write_run(results / name, records, environment)
    file = folder / "env.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "started": started}))


@pytest.fixture
def results(tmp_path):
    """Two sets of one machine, the later written first, and one of another machine."""
    result_set(tmp_path, "z/late", "2026-03-01T00:00:00.000Z", 1.5)
    result_set(tmp_path, "early", "2026-01-01T00:00:00.000Z", 2.0, source_hash="older")
    result_set(tmp_path, "middle", "2026-02-01T00:00:00.000Z", 2.05, source_hash="older")
    result_set(tmp_path, "other", "2026-02-02T00:00:00.000Z", 9.0, machine="Another CPU")
    return tmp_path


def page(results, capsys, *argv):
    assert history.main(["gelu", "--results", str(results), *argv]) == 0
    return capsys.readouterr().out


def test_sets_are_in_the_order_of_their_dates_with_changes_beyond_noise(results, capsys):
    lines = page(results, capsys, "--variant", "cpu.simd", "--device", "A CPU").splitlines()
    rows = [line for line in lines if "2026-" in line]
    assert [row.split("2026-")[1][:2] for row in rows] == ["01", "02", "03"]
    assert "+2.5% =" in rows[1]  # below the floor of 5 %
    assert "-27%" in rows[2] and "=" not in rows[2] and "changed" in rows[2]
    assert "2 ms" in rows[0] and "1.5 ms" in rows[2] and "012345678" in rows[0]
    assert all(len(line) <= 160 for line in lines)


def test_machines_are_apart_and_failures_have_no_row(results, capsys):
    text = page(results, capsys)
    assert text.index("gelu on A CPU") < text.index("gelu on Another CPU") and "cpu.bad" not in text
    other = text.split("gelu on Another CPU")[1]
    assert "9 ms" in other and "%" in other and "2 ms" not in other
    assert "Another CPU" not in page(results, capsys, "--device", "a cpu")


def test_a_set_that_covers_less_is_no_change_of_the_one_before(results, capsys):
    lacks = dict(proof_cases=7, proof_cases_all=9, not_supported=["grouped queries"])
    result_set(results, "part", "2026-04-01T00:00:00.000Z", 0.5, **lacks)
    text = page(results, capsys, "--variant", "cpu.simd", "--device", "A CPU")
    row = next(line for line in text.splitlines() if "2026-04" in line)
    assert "500 µs" in row and "-67%" not in row


def test_the_times_are_those_of_the_cache_state_asked_for(results, capsys):
    result_set(results, "warm", "2026-04-01T00:00:00.000Z", 0.5, cache="warm")
    assert "0.5 ms" not in page(results, capsys)
    assert "500 µs" in page(results, capsys, "--cache", "warm")


def test_pictures(results, tmp_path, capsys):
    pytest.importorskip("vl_convert")
    png, html = tmp_path / "new" / "h.png", tmp_path / "h.html"
    page(results, capsys, "--png", str(png), "--html", str(html))
    assert png.read_bytes().startswith(b"\x89PNG") and len(png.read_bytes()) > 10_000
    text = html.read_text()
    assert "Another CPU" in text and 'src="http' not in text  # drawn without a network


def test_a_picture_needs_its_library(results, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(CannotGoOn, match="pip install vl-convert-python"):
        history.main(["gelu", "--results", str(results), "--png", str(tmp_path / "h.png")])


@pytest.mark.parametrize(
    ("argv", "told", "code"),
    [
        (["gelo"], "unknown layer in the results 'gelo'; did you mean 'gelu'", USAGE),
        (["gelu", "--variant", "cpu.smd"], "did you mean 'cpu.simd'", USAGE),
        (["gelu", "--device", "H200"], "no cold times of gelu on H200", FAILED),
        (["gelu", "--cache", "warm"], "no warm times of gelu", FAILED),
    ],
)
def test_nothing_there(results, argv, told, code):
    with pytest.raises(CannotGoOn, match=told) as caught:
        history.main([*argv, "--results", str(results)])
    assert caught.value.code == code


def test_no_results_at_all(tmp_path):
    with pytest.raises(CannotGoOn, match="no run in"):
        history.main(["gelu", "--results", str(tmp_path)])
