"""The page of generations: what the records say, and no ladder of what cannot be compared."""

from pathlib import Path
from typing import Any

import pytest

from bench.cli import CannotGoOn
from bench.records.read import Loaded
from bench.show import report
from bench.show.generation_page import Page, is_generation

EVIL = "<script>document.title = 'broken'</script>"


def row(variant: str, weights: str, ms: float, phase: str = "decode", **other: Any) -> dict[str, Any]:
    """A step of so many milliseconds that reads 10 MB at 10 GB/s at best: 1 ms."""
    share = (
        {"mbu": 1 / ms, "bytes": 10**7} if phase == "decode" else {"mfu": 1 / ms, "flops": 10**7, "first_token_s": 0.1}
    )
    known = dict(
        case_id=f"m {variant} {weights} {phase}",
        layer="llama2-15m",
        variant=variant,
        phase=phase,
        weights=weights,
        dtype="fp32",
        status="ok",
        median_s=ms / 1e3,
        low_s=ms / 1.1e3,
        high_s=ms / 0.9e3,
        noise=0.01,
        floor_s=1e-3,
        tokens_per_s=1e3 / ms,
        shape=dict(B=1, T=8, S=16, steps=8),
        device="cpu",
        in_context_s={"gemv/head forward": ms / 2e3, "moves": ms / 2e3},
        kernels={"gemv/head forward": "cpu.simd"},
    )
    return {**known, **share, **other}


def run(*rows: dict[str, Any], name: str = "run", kind: str = "generate") -> Loaded:
    environment: Any = {"cpu": {"model": "a made-up CPU", "usable": 2}, "command": f"python -m bench.generate {EVIL}"}
    return Loaded(Path(name), kind, environment, list(rows))  # type: ignore[arg-type]


def test_decode_stands_beside_its_floor():
    page = Page([run(row("ours", "fp32", 1.25), row("ours", "fp32", 4, "prefill"), row("torch.eager", "fp32", 5))])
    assert page.title == "Text from llama2-15m"
    ours = dict(zip(page.decode_columns, page.decode[0].cells, strict=True))
    assert ours["tokens/s"] == "800.0" and ours["at the floor"] == "1,000.0" and ours["MBU"] == "80%"
    point = page.data["decode"].rows[0]
    assert point["rate"] == 800 and point["limit"] == pytest.approx(1000) and point["low"] < 800 < point["high"]
    assert [p["kind"] for p in page.data["decode"].rows] == ["ours", "others"]
    assert page.ladders == [] and page.parts[0][1][0] == ("gemv/head", ["cpu.simd", "625 µs", "50%"])


def test_the_ladder_is_of_one_model_and_what_is_right():
    fp32, bf16 = row("ours fp32", "fp32", 8), row("ours bf16", "bf16", 4, bytes=5 * 10**6)
    wrong = row("ours q8_0", "q8_0", 2, status="wrong", evidence="logits are off")
    page = Page([run(fp32, bf16, wrong)])
    ((model, rungs),) = page.ladders
    assert model == "llama2-15m"
    assert [(r.form, r.gain, r.fewer) for r in rungs] == [
        ("fp32", "1.00x", "1.00x fewer bytes"),
        ("bf16", "2.00x", "2.00x fewer bytes"),
    ]
    assert page.troubles == ["ours q8_0, decode: wrong: logits are off"]
    other = row("ours bf16", "bf16", 4, layer="llama2-110m")
    assert Page([run(fp32), run(other, name="second")]).ladders == []
    larger = row("ours fp32", "fp32", 16, layer="llama2-110m")
    both = Page([run(fp32, bf16), run(larger, other, name="second")])
    assert [(model, [r.gain for r in rungs]) for model, rungs in both.ladders] == [
        ("llama2-15m", ["1.00x", "2.00x"]),
        ("llama2-110m", ["1.00x", "4.00x"]),
    ]


def test_a_noisy_run_ranks_nothing():
    rows = row("ours fp32", "fp32", 8, speedup=2.0, high_s=0.05), row("ours bf16", "bf16", 4, speedup=4.0)
    page = Page([run(*rows)])
    assert page.ladders == [] and "ranks nothing" in page.troubles[0]
    assert {r.cells[page.decode_columns.index("speed")] for r in page.decode} == {"–"}


def test_nothing_timed_is_nothing_to_report():
    with pytest.raises(CannotGoOn, match="nothing was timed"):
        Page([run({k: v for k, v in row("ours", "fp32", 1).items() if k != "median_s"})])


def test_runs_of_other_kinds_have_the_other_page():
    of_text, of_a_layer = run(row("ours", "fp32", 1)), run(row("cpu.simd", "fp32", 1, "forward"), kind="layer")
    assert is_generation([of_text]) and not is_generation([of_text, of_a_layer]) and not is_generation([])


def test_what_records_say_is_text_on_the_page(tmp_path):
    shown, template = report.page_of([run(row("ours", "fp32", 1, story=EVIL))])
    html = report.write(shown, template, tmp_path / "report.html").read_text()
    assert EVIL not in html and "&lt;script&gt;document.title" in html


def test_a_text_beside_layers_is_no_layer():
    """As in a suite, which writes one too."""
    layer = dict(case_id="g", layer="gelu", variant="cpu.simd", phase="forward", dtype="fp32", status="ok", shape={})
    page, template = report.page_of([run(row("ours", "fp32", 1.25)), run(layer, kind="layer")])  # type: ignore[arg-type]
    assert isinstance(page, report.Page) and template == report.TEMPLATE
    assert {r["layer"] for one in page.runs for r in one.records} == {"gelu"} and "llama2" not in page.title
