"""`supports(shape)`: what a variant says it takes is proved, the rest is told, and nothing tried is no success."""

import json
from types import SimpleNamespace

import pytest

from bench import layer
from bench.cli import CANNOT_RUN, NOTHING_TRIED, OK
from bench.cli import WRONG as WRONG_CODE
from bench.core.case import Case
from bench.core.process import ProcessFailed
from bench.core.variants import discover, need_options, need_support
from bench.trial.checks import Verdict
from bench.trial.plan import plan_of
from bench.trial.prove import Proof, _count, cases_for
from bench.trial.room import MESSAGE, Setting, whole_message
from bench.trial.session import copy_messages
from kernels import Unavailable, cache_dir
from reference import contract

ADDS = '"""Adds."""\n\nimport torch\n\n{supports}\n\n\ndef forward(a, b, *, out):\n    torch.add(a, b, out=out)\n'
WRONG_ELSEWHERE = ADDS + "    if a.numel() % 2:\n        out.zero_()\n"


def prove(tmp_path, text, *more):
    file = tmp_path / "kernels" / "torch" / "residual" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    arguments = ["residual", "--only", "torch.mine", "--kernels", str(tmp_path / "kernels"), "--pass", "forward"]
    code = layer.main([*arguments, *(more or ["--check-only"]), "--out", str(tmp_path / "run")])
    return code, [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]


def test_the_shapes_it_does_not_take_are_told_and_not_tried(tmp_path):
    supports = 'def supports(shape):\n    return shape["N"] % 2 == 0 or "an odd N"'
    code, (row,) = prove(tmp_path, WRONG_ELSEWHERE.format(supports=supports))
    assert code == OK and row["status"] == "ok"
    assert row["not_supported"] == ["an odd N"] and 0 < row["proof_cases"] < row["proof_cases_all"]


def test_what_it_says_it_takes_must_be_right(tmp_path):
    code, (row,) = prove(tmp_path, WRONG_ELSEWHERE.format(supports="def supports(shape):\n    return True"))
    assert code == WRONG_CODE and row["status"] == "wrong"


NO_SLICE = 'def supports(shape):\n    return shape["N"] in (1, 2800 * 768) or "another size"'


@pytest.mark.parametrize(("more", "expected"), [("", OK), ("    out.nan_to_num_()\n", WRONG_CODE)])
def test_who_takes_no_slice_of_what_is_timed_is_shown_hard_values_there(tmp_path, more, expected):
    code, (row,) = prove(tmp_path, (ADDS + more).format(supports=NO_SLICE), "--check-only", "-a", "B=2800", "-a", "T=1")
    assert code == expected, row["evidence"]
    if code == OK:  # each of the one ragged shape and of the timed one
        assert row["proof_cases"] == 2 + 2 * len(contract.load("residual").CASES) + 1
    else:
        assert row["evidence"].startswith("not_finite") and "[not_finite, " in row["evidence"]


@pytest.mark.parametrize(("more", "expected"), [((), CANNOT_RUN), (("--only", "torch.min*"), NOTHING_TRIED)])
def test_what_takes_nothing_has_an_exit_code_by_how_it_was_named(tmp_path, capsys, more, expected):
    takes_nothing = ADDS.format(supports="def supports(shape):\n    return False")
    code, (row,) = prove(tmp_path, takes_nothing, "--check-only", *more)
    assert code == expected and row["status"] == "skipped"
    assert "torch.mine was not tried: a shape such as" in capsys.readouterr().out


def test_a_look_is_a_try(tmp_path):
    code, _ = prove(tmp_path, ADDS.format(supports=""), "--smoke")
    assert code == OK


@pytest.mark.parametrize("answer", [None, 1, "", []])
def test_an_answer_that_says_nothing_is_an_error(answer):
    with pytest.raises(TypeError, match="supports"):
        need_support(SimpleNamespace(supports=lambda shape: answer), {"C": 4})  # type: ignore[arg-type]


def test_the_sizes_are_told_where_it_says_no_more_than_no():
    with pytest.raises(Unavailable, match="a shape such as B=2, C=7"):
        need_support(SimpleNamespace(supports=lambda shape: False), {"B": 2, "C": 7, "dtype": "fp32"})  # type: ignore[arg-type]


ATTENDS = '''"""Attends."""

from kernels.torch.attention import eager


def forward(q, k, v, causal, window{default}, *, out, lse):
    eager.forward(q, k, v, causal, window, out=out, lse=lse)
'''


def test_an_option_that_it_has_no_parameter_for_is_not_supported():
    """A shape that does not have it is; 0 is no window."""
    takes = SimpleNamespace(forward=lambda q, k, v, causal, window=0, *, out, lse: None)
    takes_none = SimpleNamespace(forward=lambda q, k, v, causal, *, out, lse: None)
    for module, window in ((takes, 3), (takes_none, 0)):
        need_options(module, "attention", "forward", {"window": window})  # type: ignore[arg-type]
    need_options(takes_none, "attention", "forward", {})  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="the option window"):
        need_options(takes_none, "attention", "forward", {"window": 3})  # type: ignore[arg-type]


def test_who_has_no_option_is_whole_without_it_and_not_supported_with_it():
    without, takes = (next(v for v in discover() if (v.layer, v.stem) == ("attention", s)) for s in ("wgmma", "flash"))
    plain, windowed = {"causal": True}, {"causal": True, "window": 9}
    setting = Setting(threads=1, time_limit=60)

    def windows(variant, *timed):
        made = cases_for(
            variant, "forward", "bf16", [0], [{**contract.load("attention").RAGGED[0], **t} for t in timed], setting
        )
        return sum(bool(case.shape.get("window")) for case in made)

    assert without.lacks("forward", windowed) == ["window"] and not without.lacks("forward", plain)
    assert windows(without) == windows(without, plain) == 0
    assert windows(without, windowed) > 0, "it is asked for, and refused"
    assert windows(takes) > 0


@pytest.mark.parametrize("default", ["", "=3", "=False"])
def test_an_option_is_0_by_default(tmp_path, default):
    file = tmp_path / "torch" / "attention" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(ATTENDS.format(default="=0"))
    assert not next(v for v in discover((tmp_path,)) if v.stem == "mine").fault
    file.write_text(ATTENDS.format(default=default))
    fault = next(v for v in discover((tmp_path,)) if v.stem == "mine").fault
    assert "forward's optional window must be 0 by default" in fault


def test_an_option_in_another_place_is_refused(tmp_path):
    file = tmp_path / "torch" / "attention" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(ATTENDS.format(default="=0").replace("causal, window=0", "window, causal"))
    fault = next(v for v in discover((tmp_path,)) if v.stem == "mine").fault
    assert "or forward(…, window=0, *, …)" in fault


def test_another_parameter_list_is_refused(tmp_path, capsys):
    file = tmp_path / "torch" / "residual" / "mine.py"
    file.parent.mkdir(parents=True)
    file.write_text(ADDS.format(supports="def supports(shape, phase):\n    return True"))
    (found,) = (v for v in discover((tmp_path,)) if v.stem == "mine")
    assert "supports takes a shape" in found.fault


def test_all_that_a_compiler_said_lies_beside_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    told = whole_message(ValueError("error: first\nwarning: later"))
    (name,) = MESSAGE.findall(told)
    copy_messages(f"error: first{told} [case, seed 0]", tmp_path)
    assert (tmp_path / name).read_text() == "error: first\nwarning: later"
    copy_messages("[all of it: compiler-../../etc.txt] [all of it: compiler-0123456789.txt]", tmp_path)
    assert cache_dir() == tmp_path / "cache" and [p.name for p in tmp_path.glob("*.txt")] == [name]


def test_what_is_counted_is_a_shape_that_it_takes():
    module = contract.load("residual")
    cases = [Case("residual", "forward", dict(N=n, dtype="fp32"), f"n {n}", 0) for n in (7, 8)]
    asked = []

    class Simulated:
        def ask(self, command, **given):
            asked.append(given["case"].shape["N"])
            if given["case"].shape["N"] % 2:
                raise ProcessFailed("skipped", "an odd N")
            return {"moved_of_minimum": 1.0}, None

    judging = SimpleNamespace(given=lambda *_: None, judge=lambda *_: Verdict())
    proof = Proof(SimpleNamespace(layer=module), "forward", "fp32", by_simulator=True)  # type: ignore[arg-type]
    _count(proof, cases, Simulated(), judging, Setting())  # type: ignore[arg-type]
    assert asked == [7, 8] and proof.counts == {"moved_of_minimum": 1.0} and proof.simulated
    with pytest.raises(ProcessFailed, match="an odd N"):
        _count(proof, cases[:1], Simulated(), judging, Setting())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [([], True), (["--check-only"], False), (["--smoke"], False), (["--check-only", "--count"], True)],
)
def test_a_proof_alone_counts_where_it_is_asked(arguments, counts):
    given = vars(layer.parser().parse_args(["residual", *arguments]))
    assert plan_of(**given, argv=[]).count == counts
