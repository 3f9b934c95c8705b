"""What is asked for by name."""

import pytest

from bench import cli, layer
from bench.cli import CannotGoOn
from bench.core.variants import discover
from bench.trial.plan import cases, plan_of

KNOWN = ["cpu.naive", "cpu.simd", "cuda.naive", "torch.eager"]


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("cpu.*", ["cpu.naive", "cpu.simd"]),
        ("*.naive,cpu.?aive,torch.eager", ["cpu.naive", "cuda.naive", "torch.eager"]),
        ("torch.eager, *", ["torch.eager", "cpu.naive", "cpu.simd", "cuda.naive"]),
    ],
)
def test_patterns_stand_for_every_variant_that_they_match_once(only, names):
    assert cli.choose_all(only, KNOWN, "variant") == names


@pytest.mark.parametrize(
    ("only", "says"), [("gpu.*", r"'gpu\.\*'.* \(known: cpu.naive, "), ("cpu.simt", "did you mean")]
)
def test_what_matches_nothing_says_what_there_is(only, says):
    with pytest.raises(CannotGoOn, match=f"unknown variant .*{says}"):
        cli.choose_all(only, KNOWN, "variant")


def asked(*arguments):
    given = ["gelu", *arguments]
    return plan_of(**vars(layer.parser().parse_args(given)), argv=given)


def test_what_is_left_out_does_not_run_and_must_be_known():
    names = [v.name for v in asked().chosen("gelu")]
    assert names == [v.name for v in asked("--all").chosen("gelu")], "what --help says of it"
    assert set(names) == {v.name for v in discover(layers=["gelu"])}
    left = [v.name for v in asked("--without", "*.naive,torch.compile").chosen("gelu")]
    assert left == [n for n in names if not n.endswith(".naive") and n != "torch.compile"] != names
    assert [v.name for v in asked("--only", "cpu.*", "--without", "cpu.simd").chosen("gelu")] == ["cpu.naive"]
    with pytest.raises(CannotGoOn, match=r"unknown variant of gelu 'cpu.simt'; did you mean 'cpu.simd'"):
        asked("--without", "cpu.simt")


def test_an_optional_scalar_is_an_axis_of_its_layer_alone():
    plan = asked("-a", "window=64,128")
    assert [case.shape["window"] for case, _ in cases(plan, "attention", "forward", "fp32")] == [64, 128]
    with pytest.raises(CannotGoOn, match="gelu has no axis 'window'"):
        list(cases(plan, "gelu", "forward", "fp32"))
