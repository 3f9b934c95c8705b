"""--resume goes on with the command that a run was begun with, and with no other."""

import pytest

from bench import layer, suite
from bench.cli import USAGE, CannotGoOn
from bench.records.read import RECORDS
from bench.records.run import Run
from bench.trial.resume import gone_on_with

BEGUN = ["gelu", "--only", "cpu.simd", "-a", "T=64", "-a", "dtype=fp32,bf16", "--threads", "1", "--out", "somewhere"]


@pytest.fixture
def folder(tmp_path):
    Run.create("layer", tmp_path / "run", BEGUN).close()
    return tmp_path / "run"


def on(folder, *argv, kind="layer", parser=layer.parser):
    args, command = gone_on_with(parser, [*argv, "--resume", *([str(folder)] * (kind == "layer"))], folder, kind)
    return vars(args), command


@pytest.mark.parametrize(
    "argv", [[], ["gelu"], ["gelu", "--only", "cpu.simd"], ["-a", "T=64", "-a", "dtype=fp32,bf16"]]
)
def test_what_is_not_said_again_is_as_it_was(folder, argv):
    args, command = on(folder, *argv, "--seconds", "3", "--json")
    assert (args["layer"], args["only"], args["axis"]) == ("gelu", "cpu.simd", ["T=64", "dtype=fp32,bf16"])
    assert (args["threads"], args["seconds"], args["json"]) == (1, 3.0, True)
    assert args["resume"] == folder and args["out"] is None, "it writes nowhere else"
    assert command == BEGUN, "which rows and the page tell"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["layernorm"], "layer: gelu then, layernorm now"),
        (["gelu", "--only", "cpu.naive"], "only: cpu.simd then, cpu.naive now"),
        (["--device", "cuda"], "device: nothing then, cuda now"),
        (["-a", "T=64"], "axis: T=64,dtype=fp32,bf16 then, T=64 now"),
        (["--check-only"], "check_only: nothing then, True now"),
        (["--time-limit", "5"], "time_limit: nothing then, 5.0 now"),
    ],
)
def test_what_does_not_match_is_refused(folder, argv, told):
    with pytest.raises(CannotGoOn, match="begun by another command") as refused:
        on(folder, *argv)
    assert told in str(refused.value) and refused.value.code == USAGE


def test_what_is_a_default_then_and_said_now_is_the_same(folder):
    assert on(folder, "--device", "cpu", "--shape", "gpt2-124m")[0]["device"] == "cpu"


def test_a_path_that_was_not_written_down_must_be_said_again(tmp_path):
    folder, kernels = tmp_path / "run", ["--kernels", "/some/where/mine"]
    Run.create("layer", folder, ["gelu", *kernels]).close()
    with pytest.raises(CannotGoOn, match="what --kernels was is not written down"):
        on(folder)
    assert on(folder, *kernels)[0]["kernels"] == ["/some/where/mine"]


def test_a_command_of_another_version_is_no_traceback(tmp_path, capsys):
    Run.create("layer", tmp_path / "run", ["gelu", "--no-such-option"]).close()
    with pytest.raises(CannotGoOn, match="which this version does not know"):
        on(tmp_path / "run")
    assert capsys.readouterr().err == ""


def test_no_run_is_left_to_who_opens_it(tmp_path):
    args, command = on(tmp_path, "gelu", "--only", "cpu.simd")
    assert args["only"] == "cpu.simd" and command[0] == "gelu"
    Run.create("e2e", tmp_path / "step", ["gpt2-tiny"]).close()
    assert on(tmp_path / "step", "gelu")[0]["layer"] == "gelu"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / RECORDS).write_text("")  # of a run that wrote no env.json
    assert on(tmp_path / "old", "gelu")[0]["layer"] == "gelu"


def test_a_suite_goes_on_with_its_layers_and_another_time(tmp_path):
    Run.create("suite", tmp_path / "s", ["--out", "s", "--layers", "gelu", "--minutes", "2"]).close()
    common = ["--out", str(tmp_path / "s")]
    args, _ = on(tmp_path / "s", *common, "--minutes", "5", kind="suite", parser=suite.parser)
    assert (args["layers"], args["minutes"], args["resume"]) == ("gelu", 5.0, True)
    with pytest.raises(CannotGoOn, match="layers: gelu then, attention now"):
        on(tmp_path / "s", *common, "--layers", "attention", kind="suite", parser=suite.parser)
