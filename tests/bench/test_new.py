"""A new variant: for every layer and backend it is found at once, and it is right before anything is changed."""

import runpy
import types

import pytest
import torch

from bench import layer, new
from bench.cli import USAGE, CannotGoOn
from bench.core import BACKENDS, scaffold
from bench.core.variants import discover
from reference import contract
from reference.models import MODELS


def test_every_layer_has_a_start_in_every_backend(tmp_path):
    variants = discover()
    for backend in BACKENDS:
        for name in contract.layer_names():
            start = scaffold.simplest(variants, name, backend)
            assert start
            scaffold._write(scaffold.copies(start, "mine", tmp_path / backend / name))
    found = [v for v in discover((tmp_path,)) if v.stem == "mine"]
    assert len(found) == len(contract.layer_names()) * len(BACKENDS)
    assert all(v.story.startswith("A copy of ") for v in found)


@pytest.mark.parametrize(("name", "backend"), [("gelu", "cpu"), ("residual", "torch")])
def test_the_start_is_right(tmp_path, name, backend):
    scaffold.new_variant(name, "mine", backend, tmp_path)
    arguments = [name, "--only", f"{backend}.mine", "--kernels", str(tmp_path), "--check-only"]
    assert layer.main([*arguments, "--out", str(tmp_path / "run")]) == 0


@pytest.fixture
def swish(monkeypatch):
    """A layer as `--layer swish` writes it, known for the length of a test."""
    module = types.ModuleType("reference.swish")
    exec(scaffold.CONTRACT.format(title="Swish"), module.__dict__)
    names, load = contract.layer_names(), contract.load
    monkeypatch.setattr(contract, "layer_names", lambda: [*names, "swish"])
    monkeypatch.setattr(contract, "load", lambda layer: module if layer == "swish" else load(layer))
    return module


def test_a_layer_that_no_model_calls_is_timed_at_its_typical_shape(swish):
    model = MODELS["gpt2-124m"]
    assert model.shapes("swish", 4, 64) == {"": contract.Call(swish.typical(4, 64), 0)}
    del swish.typical
    with pytest.raises(LookupError, match=r"gpt2-124m does not call swish, and reference/swish.py has no typical"):
        model.shapes("swish", 4, 64)


@pytest.mark.parametrize("backend", ("cpu", "cuda", "triton"))
def test_a_new_layers_first_kernel_is_another_layers_with_the_same_tensors(tmp_path, swish, backend):
    written, commands = scaffold.new_variant("swish", "mine", backend, tmp_path)
    assert commands[0].startswith(f"$EDITOR {written[-1]} ") and "gelu's formula still" in commands[0]
    (found,) = (v for v in discover((tmp_path,)) if v.layer == "swish")
    assert found.name == f"{backend}.mine" and "A copy of gelu's" in found.story


def test_where_no_layer_has_the_same_tensors_the_signature_is_told(tmp_path, swish):
    swish.BACKWARD = None
    with pytest.raises(CannotGoOn, match=r"write kernels/cpu/swish/NAME.py with forward\(x, \*, out\) \("):
        scaffold.new_variant("swish", "mine", "cpu", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("cuda", "triton"))
@pytest.mark.parametrize("name", ("gelu", "layernorm", "matmul"))
def test_the_start_on_a_gpu_is_right_in_the_simulator(tmp_path, name, backend):
    scaffold.new_variant(name, "mine", backend, tmp_path)
    arguments = [name, "--only", f"{backend}.mine", "--kernels", str(tmp_path), "--check-only"]
    assert layer.main([*arguments, "--out", str(tmp_path / "run")]) == 0


def test_the_commands_that_are_printed_name_the_new_variant(tmp_path, capsys):
    assert new.main(["gelu", "mine", "--backend", "triton", "--into", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert (
        "triton/gelu/mine.py" in said and f"--only triton.mine --kernels {tmp_path}" in said and "bench.static" in said
    )
    assert "dtype=fp32,bf16,fp16" in said, "every dtype that the copy supports"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gleu", "mine", "--backend", "cpu"], "did you mean 'gelu'"),
        (["gelu", "Mine!", "--backend", "cpu"], "no name for a file"),
        (["gelu", "mine"], "say which"),
        (["gelu", "--layer", "swish"], "a layer of its own"),
        (["--layer", "gelu"], "a layer already"),
    ],
)
def test_what_cannot_be_made_says_why(tmp_path, arguments, said):
    with pytest.raises(CannotGoOn, match=said):
        new.main(arguments)


def test_what_is_there_is_never_overwritten(tmp_path):
    scaffold.new_variant("gelu", "mine", "cpu", tmp_path)
    with pytest.raises(CannotGoOn, match="is there already"):
        scaffold.new_variant("gelu", "mine", "cpu", tmp_path)
    assert new.parser().parse_args(["gelu", "a", "--backend", "cpu"]).backend == "cpu"
    with pytest.raises(SystemExit) as stopped:
        new.parser().parse_args(["gelu", "a", "--backend", "rust"])
    assert stopped.value.code == USAGE


def test_a_new_layers_contract_is_whole_and_its_gradient_right(tmp_path, monkeypatch):
    monkeypatch.setattr(scaffold, "HOME", tmp_path)
    written, commands = scaffold.new_layer("swish")
    assert [str(path) for path in written] == ["reference/swish.py", "kernels/torch/swish/eager.py"] and commands
    module = runpy.run_path(str(tmp_path / "reference" / "swish.py"))
    assert {"FORWARD", "BACKWARD", "forward", "backward", "typical", "RAGGED", "CASES", "flops"} <= set(module)
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    dout = torch.randn(50, dtype=torch.float64)
    module["forward"](x)["out"].backward(dout)
    assert x.grad is not None and torch.allclose(x.grad, module["backward"](dout, x.detach())["dx"])
    eager = runpy.run_path(str(tmp_path / "kernels" / "torch" / "swish" / "eager.py"))
    dx = torch.empty(50)
    eager["backward"](dout.float(), x.detach().float(), dx=dx)
    assert torch.allclose(dx.double(), x.grad, atol=1e-6)
