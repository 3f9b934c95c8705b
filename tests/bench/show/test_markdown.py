"""Tables in documents come from committed results, and a stale one is found."""

import json
from typing import Any

import pytest

from bench import readme_tables
from bench.cli import CannotGoOn
from bench.show import markdown

ROW = dict(
    schema=1,
    case_id="a-cold",
    layer="gelu",
    variant="cpu.simd",
    phase="forward",
    dtype="fp32",
    shape_name="gpt2-124m",
    cache="cold",
    status="ok",
    median_s=0.002,
    of_ceiling=0.5,
    speedup=2.0,
    speedup_low=1.9,
    speedup_high=2.1,
    noise_floor=0.1,
    baseline="torch.eager",
    error_ratio=0.9,
    evidence="",
    story="Fast.",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(markdown, "HOME", tmp_path)
    (tmp_path / "run").mkdir()
    rows = [
        ROW,
        {**ROW, "case_id": "b", "control": True, "median_s": 0.001},
        {**ROW, "case_id": "c", "status": "wrong"},
    ]
    (tmp_path / "run" / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_a_table_is_made_from_the_records(home):
    text = "before\n<!-- table layers run -->\nold\n<!-- end -->\nafter"
    new = markdown.rewrite(text)
    assert "| gelu | forward | cpu.simd | 2 ms | 50% | torch.eager | 2.00x | 10% |" in new
    assert "old" not in new and new.startswith("before") and new.endswith("after")
    assert markdown.rewrite(new) == new


def test_a_difference_below_the_noise_floor_is_marked(home):
    (home / "run" / "records.jsonl").write_text(json.dumps({**ROW, "noise_floor": 1.5}) + "\n")
    assert "| 2.00x = | 150% |" in markdown.rewrite("<!-- table layers run -->\n<!-- end -->")


def test_a_folder_of_runs_is_one_table(home):
    for layer in ("softmax", "gelu"):
        (home / "all" / layer).mkdir(parents=True)
        (home / "all" / layer / "records.jsonl").write_text(json.dumps({**ROW, "layer": layer}) + "\n")
    text = "<!-- table layers all -->\n<!-- end -->"
    assert [line.split(" | ")[0] for line in markdown.rewrite(text).splitlines()[3:5]] == ["| gelu", "| softmax"]
    (home / "all" / "gelu" / "records.jsonl").write_text("{\n")
    with pytest.raises(CannotGoOn, match="damaged"):
        markdown.rewrite(text)


def test_verdicts_on_imported_kernels_are_a_row_a_line_and_counted(home):
    file = home / "imported.tsv"
    file.write_text("# what it is\na/b\tadd\tresidual\t0\tright\t\na/c\tsum\tgelu\t2\twrong\ta race\n")
    text = markdown.rewrite("<!-- table imported imported.tsv -->\n<!-- end -->")
    assert "| a/c | sum | gelu | 2 | wrong | a race |" in text
    assert "2 kernels: 1 right, 1 wrong. 1 have no line for a person to decide." in text
    file.write_text("a/b\tadd\n")
    with pytest.raises(CannotGoOn, match=r"imported.tsv: not 6 fields: a/b \| add"):
        markdown.rewrite("<!-- table imported imported.tsv -->\n<!-- end -->")


def test_drawn_kernels_count_where_they_ran_with_few_lines(home):
    rows = ["# a remark", "a\tk\tgelu\t0\tright\t", "a\tl\tgelu\t11\tright\t", "a\tm\tgelu\t10\twrong\twhy"]
    (home / "drawn.tsv").write_text("\n".join([*rows, "a\tn\tgelu\t0\tnot run\tno such header"]))
    text = markdown.rewrite("<!-- table drawn drawn.tsv -->\n<!-- end -->")
    assert "| a | n | gelu | 0 | not run | no such header |" in text
    assert "2 of 4 ran with at most 10 lines of glue, 1 with none: 1 right, 1 wrong." in text
    second = ["## Another draw", "# its seed", "b\tk\tgelu\t3\tright\t", "b\tl\tgelu\t0\tnot run\tno"]
    (home / "drawn.tsv").write_text("\n".join(["## One draw", *rows, *second]))
    one, other = markdown.rewrite("<!-- table drawn drawn.tsv -->\n<!-- end -->").split("\n\nAnother draw:\n")
    assert "One draw:" in one and "2 of 3 ran" in one and "| b |" not in one
    assert "1 of 2 ran with at most 10 lines of glue, 0 with none: 1 right." in other and "| a |" not in other


def test_a_stale_table_is_found(home, capsys):
    file = home / "README.md"
    file.write_text("<!-- table variants run layer=gelu phase=forward -->\nold\n<!-- end -->\n")
    assert readme_tables.main(["--check", str(file)]) == 1 and "old" in file.read_text()
    assert readme_tables.main([str(file)]) == 0 and "Fast." in file.read_text()
    assert readme_tables.main(["--check", str(file)]) == 0


def test_text_from_a_model_has_a_row_a_contestant():
    def row(variant: str, phase: str, **more) -> Any:
        return dict(variant=variant, phase=phase, weights="fp32", median_s=1e-2, noise=0.05, tokens_per_s=100.0) | more

    rows = [
        row("ours", "prefill", mfu=0.5, tokens_per_s=2000.0),
        row("ours", "decode", mbu=0.9, bytes=60_918_912),
        row("transformers", "decode", mbu=0.25, tokens_per_s=50.0, bytes=230_000_000),
        row("torch.compile", "decode", median_s=None),
    ]
    assert markdown.generation(rows).splitlines()[2:] == [
        "| ours | fp32 | 100.0 | 5.0% | 61 MB | 90% | 2000 | 50% |",
        "| transformers | fp32 | 50.0 | 5.0% | 230 MB | 25% | – | – |",
    ]


@pytest.mark.parametrize(
    ("share", "of", "said"), [("mbu", "decode", "last-level cache"), ("mfu", "prefill", "for bytes")]
)
def test_a_share_above_its_ceiling_has_its_reason_below(share, of, said):
    row: Any = dict(
        variant="ours", weights="q8_0", median_s=1e-2, tokens_per_s=100.0, noise=0.1, bytes=1e6, mbu=1, mfu=1
    )
    rows = [row | dict(phase=phase) for phase in ("prefill", "decode")]
    assert said not in markdown.generation(rows)
    next(r for r in rows if r["phase"] == of)[share] = 1.01
    assert f"{share.upper()} above 100%" in markdown.generation(rows) and said in markdown.generation(rows)


def test_a_gpu_that_was_not_measured_has_dashes_and_never_a_number(home):
    from tests.bench.show.test_report import row

    table = markdown.rewrite("<!-- table gpu no/such/folder -->\n<!-- end -->")
    assert "| all of them | both | – | – | – | – |" in table
    fast = row("triton.block", seconds=1e-5, timer="busy", dtype="bf16")
    slow = row("cuda.naive", seconds=1e-4, timer="busy", dtype="bf16")
    lines = markdown.gpu([slow, fast, row("cpu.simd", seconds=1e-9, dtype="bf16")]).splitlines()
    assert "| gelu | forward | triton.block | 10 µs | 50% | 200.00x |" in lines
    assert "| gelu | backward | – | – | – | – |" in lines


def test_a_gpu_that_a_suite_measured_is_told_from_all_its_pieces(home):
    from tests.bench.show.test_report import row

    def write(name, kind, *rows):
        folder = home / "results" / name
        folder.mkdir(parents=True)
        (folder / "env.json").write_text(json.dumps({"kind": kind}))
        lines = [json.dumps({"schema": 1, **r, "case_id": str(i)}) for i, r in enumerate(rows)]
        (folder / "records.jsonl").write_text("\n".join(lines) + "\n")

    def gpu(variant: str, seconds: float = 1e-3, phase: str = "forward", **more: str | None):
        return row(variant, phase, seconds=seconds, timer="busy", dtype="bf16") | more

    write("suite", "suite", {"status": "ok", "seconds": 3.0}, {"status": "timeout"})
    look = gpu("triton.block", status="skipped", shape_name="smoke", median_s=None)
    write("suite/smoke-gelu", "layer", look)
    write("suite/time-gelu-forward", "layer", gpu("triton.block", 1e-5), gpu("torch.eager"))
    write("suite/time-gelu-backward", "layer", gpu("cuda.naive", 1e-4, "backward"))
    lines = markdown.rewrite("<!-- table gpu results -->\n<!-- end -->").splitlines()
    assert any(line.startswith("| gelu | forward | triton.block | 10 µs |") for line in lines), lines
    assert any(line.startswith("| gelu | backward | cuda.naive | 100 µs |") for line in lines), lines


def test_a_picture_is_drawn_again_where_its_numbers_changed(home):
    from tests.bench.show.test_report import row

    def measured(seconds):
        rows = [row("cpu.simd", seconds=seconds), row("torch.eager")]
        lines = [json.dumps({"schema": 1, **r, "case_id": str(i)}) for i, r in enumerate(rows)]
        (home / "run" / "records.jsonl").write_text("\n".join(lines) + "\n")

    def commands(*options):
        return readme_tables.main([*options, str(file)])

    file, picture = home / "README.md", home / "docs" / "speed.svg"
    file.write_text("<!-- chart overview run docs/speed.svg -->\n<!-- end -->\n")
    measured(1e-3)
    assert commands("--check") == 1 and not picture.exists()
    assert commands() == 0 and "![the best kernel" in file.read_text() and picture.read_text().startswith("<svg")
    assert commands("--check") == 0
    picture.write_text("kept")
    assert commands() == 0 and picture.read_text() == "kept"  # the same numbers
    measured(5e-4)
    assert commands("--check") == 1 and picture.read_text() == "kept"
    assert commands() == 0 and "4.00x" in picture.read_text()
    picture.unlink()
    assert commands("--check") == 1


def test_mistakes_are_named(home):
    with pytest.raises(CannotGoOn, match="did you mean 'layers'"):
        markdown.rewrite("<!-- table layer run -->\n<!-- end -->")
    with pytest.raises(CannotGoOn, match="no chart 'overvue'"):
        markdown.rewrite("<!-- chart overvue run docs/a.svg -->\n<!-- end -->")
    with pytest.raises(CannotGoOn, match="no such folder"):
        markdown.rewrite("<!-- table layers nothing -->\n<!-- end -->")


def test_the_documents_of_this_repository_are_up_to_date():
    assert readme_tables.main(["--check"]) == 0


def test_a_training_step_is_shown_by_its_last_rows_and_by_those_with_times(home):
    """A run writes its rows anew after each turn; a compiler that was given up has a row without a time."""
    step = dict(schema=1, layer="gpt2-124m", phase="step", dtype="bf16", status="ok", evidence="", peak_bytes=1e9)
    rows = [
        {**step, "case_id": "ours", "variant": "ours", "status": "skipped", "evidence": "built; no step taken yet"},
        {**step, "case_id": "ours", "variant": "ours", "median_s": 0.2, "tokens_per_s": 10.0},
        {**step, "case_id": "ours", "variant": "ours", "median_s": 0.1, "tokens_per_s": 20.0},
        {**step, "case_id": "compile", "variant": "torch.compile", "status": "skipped", "evidence": "given up"},
        {**step, "case_id": "eager", "variant": "torch.eager", "median_s": 0.3, "tokens_per_s": 5.0},
    ]
    (home / "run" / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table = markdown.rewrite("<!-- table step run -->\n<!-- end -->").splitlines()
    assert [line.split(" | ")[:2] for line in table if "ours" in line or "torch" in line] == [
        ["| ours", "100"],
        ["| torch.eager", "300"],
    ]
