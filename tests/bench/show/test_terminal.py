"""Tables at the widths of real terminals: names whole, failures in lines of their own, and what is left out is told."""

import io

import pytest
from rich.console import Console

from bench.show import limits, terminal
from bench.show.sheet import Col, Sheet
from bench.show.terminal import Screen, print_list
from tests.bench.show.test_report import row

EVIDENCE = "poison survived in 96 of 4096 elements, the first at [0, 125], only the last 3 of axis 1, of out" * 2
LONG = "torch.a_variant_of_a_long_name"
WIDTHS = (80, 100, 120, 160)


class Known:
    """What is known of made-up ceilings."""

    cache_bytes, busy = 1 << 20, None


def on_a_terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(params=WIDTHS)
def screen(request, monkeypatch):
    """Of each width."""
    made = on_a_terminal(request.param)
    monkeypatch.setattr(terminal, "console", lambda: made)
    return made


ROWS = [
    row(LONG, seconds=2e-3, workspace_bytes=5e6),
    row(LONG, seconds=2e-3, workspace_bytes=5e6, cache="warm"),
    row("cpu.simd", seconds=1e-3, of_ceiling=1.21, bytes=1 << 10, ceiling_bytes_per_s=1e9, workspace_bytes=0),
    row("cuda.naive", cache=None, status="wrong", evidence=EVIDENCE),
    row("cuda.shared", cache=None, status="skipped", evidence="needs an NVIDIA GPU"),
    row("cuda.tiled", cache=None, status="skipped", evidence="needs an NVIDIA GPU"),
    row("triton.part", seconds=3e-3, proof_cases=7, proof_cases_all=9, not_supported=["grouped queries"]),
]


def timings(screen: Console, rows=ROWS, facts=(), **how) -> str:
    Screen().timings("gelu forward gpt2-124m", [*facts], rows, ("cold", "warm"), False, **how)
    return said(screen)


@pytest.mark.parametrize("on_gpu", (False, True))
def test_no_name_is_cut_and_no_line_is_longer_than_the_terminal(screen, on_gpu):
    text = timings(screen, on_gpu=on_gpu)
    lines = text.splitlines()
    assert max(map(len, lines)) <= screen.width and "…" not in text
    names = [line.split()[0] for line in lines if line.strip()]
    assert {LONG, "cpu.simd", "cuda.naive", "triton.part"} <= {*names}
    head = next(line for line in lines if line.startswith("variant"))
    assert all(title in head for title in ("check", "cold ±95 %", "of ceiling", "vs torch"))
    more = ["warm ±95 %", "noise", "bits", "scratch MB", *(["graph", "launch"] if on_gpu else [])]
    told = " ".join(" ".join(lines[lines.index(head) :]).split()).partition(f"not shown at {screen.width} columns: ")[2]
    assert all((title in head) != (title in told) for title in more), "each is shown, or told as left out"
    if screen.width < 120:
        assert head.split() == ["variant", "check", "cold", "±95", "%", "of", "ceiling", "vs", "torch"]
    else:
        assert "warm" in head and "gelu" in text


def test_failures_stand_below_the_table_in_full(screen):
    text = timings(screen)
    whole = " ".join(text.split())
    assert f"cuda.naive: wrong: {EVIDENCE}" in whole
    assert "triton.part: ok for 7 of 9 cases; not: grouped queries" in whole
    (line,) = (line for line in text.splitlines() if line.startswith("cuda.naive "))
    assert "poison" not in line and "wrong" in line


def test_who_was_skipped_has_no_row_and_is_told_once_with_the_reason(screen):
    text = timings(screen)
    assert " ".join(text.split()).count("cuda.shared, cuda.tiled: skipped: needs an NVIDIA GPU") == 1
    assert text.count("cuda.shared") == text.count("cuda.tiled") == 1
    Screen().proofs("gelu", "forward", "fp32", ROWS)
    assert said(screen).count("cuda.tiled") == 2


def test_what_passes_its_ceiling_is_marked_with_its_reason(screen):
    text = timings(screen, facts=limits.above_ceiling(ROWS, Known()))
    assert "121% !" in text and "50% !" not in text
    told = "cpu.simd: 121% cold, of its ceiling: much of its 0.00102 MB finds room in the last cache (1.05 MB)"
    assert told in " ".join(text.split())


@pytest.mark.parametrize(
    ("more", "known", "reason"),
    [
        ({"bytes": 1 << 30}, {}, "measured too low"),
        ({"bytes": 1 << 30, "noise_floor": 0.3}, {}, "within this run's noise of ±30%"),
        ({"bytes": 1 << 30}, {"busy": "other programs use 90%"}, "busy machine (other programs use 90%)"),
        ({"flops": 1 << 40, "ceiling_flops_per_s": 1e9}, {}, "measured too low"),
    ],
)
def test_the_reason_is_the_likeliest_one(more, known, reason):
    ceilings = Known()
    vars(ceilings).update(known)
    r = row("cpu.simd", of_ceiling=1.21, ceiling_bytes_per_s=1e9) | more
    (told,) = limits.above_ceiling([r, r | {"of_ceiling": 1.1, "cache": "warm"}], ceilings)
    assert reason in told and told.startswith("cpu.simd: 121% cold, 110% warm, of its ceiling: ")
    assert limits.above_ceiling([r | {"of_ceiling": 0.99}], ceilings) == []


def test_a_noisy_run_ranks_nobody_and_says_so(screen):
    rows = [row("cpu.simd", seconds=2e-3, noise_floor=1.21), row("torch.eager", seconds=1e-3, noise_floor=1.21)]
    text = timings(screen, rows)
    assert "this run ranks nothing: the noise floor is ±121%" in text and "2.00x" not in text
    assert text.index("cpu.simd") < text.index("torch.eager"), "as they came, and not the faster one first"
    assert "ranks nothing" not in timings(screen, [r | {"noise_floor": 0.4} for r in rows]).partition("±121%")[2]


def test_a_pipe_has_room_for_everything(capsys):
    Screen().timings("gelu", [], ROWS, ("cold", "warm"), False, on_gpu=True)
    text = capsys.readouterr().out
    assert "not shown" not in text and f"  cuda.naive: wrong: {EVIDENCE}\n" in text and "scratch MB" in text


def test_a_sentence_that_finds_no_room_stands_below_with_whose_it_is():
    sheet = Sheet("verdicts", [Col("variant"), Col("number", True), Col("why", prose=True, rank=1, below=True)])
    sheet.add("cpu.simd", "1", "beyond the noise of both", label="gelu cpu.simd")
    sheet.add("cpu.naive", "2", "", label="gelu cpu.naive")
    for i in range(4):
        sheet.add("cpu.tiled", str(i), "a busy machine", label=f"row{i}")
    wide, narrow = on_a_terminal(80), on_a_terminal(30)
    sheet.print(wide)
    sheet.print(narrow)
    assert "below" not in said(wide) and "gelu" not in said(wide)
    told = " ".join(said(narrow).split())
    assert "gelu cpu.simd: beyond the noise of both" in told and "gelu cpu.naive" not in told
    assert "row0, row1, row2, 1 more: a busy machine" in told
    assert "not shown" not in told and max(map(len, said(narrow).splitlines())) <= 30


def test_the_list_groups_by_layer_with_one_line_a_variant(screen):
    from bench.core.variants import discover

    found = [v for v in discover() if v.layer in ("attention", "residual")]
    print_list([(v, "needs an NVIDIA GPU of a kind" if v.name == "torch.eager" else None) for v in found])
    lines = said(screen).splitlines()
    assert max(map(len, lines)) <= screen.width
    assert [line for line in lines if line in ("attention", "residual")] == ["attention", "residual"]
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert names == [v.name for v in found], "one line each, and whole"
    skipped = [line for line in lines if line.startswith("  torch.eager ")]
    assert len(skipped) == 2 and all("  skipped here: needs an NVIDIA GPU" in line for line in skipped)
