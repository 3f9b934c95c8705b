"""The training step: its gradients are PyTorch's, its memory is planned once, its clocks account for every call."""

from types import SimpleNamespace

import torch

from bench.train import Memory, Step, step_keys, step_shapes
from reference import contract
from reference.models import MODELS, Model

TINY = MODELS["gpt2-tiny"]
SMALL = Model("gpt2-small-test", L=3, NH=3, C=48, max_t=24, v=300)
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


def reference_function(layer: str, phase: str):
    """A layer's truth as a variant's function: it writes what the truth returns into the outputs."""
    module = contract.load(layer)
    p = contract.pass_of(module, phase)

    def function(*args, **outputs):
        positional = p.positional()
        assert len(args) == len(positional) and list(outputs) == p.keyword()
        accumulate = p.accumulates and args[-1]
        for spec, value in zip(p.inputs, args, strict=False):
            check_shape(spec, value)
        inplace = {t.name: outputs[t.name] for t in p.outputs if t.inplace}
        results = getattr(module, phase)(*args[: len(p.inputs) + len(p.scalars)], **inplace)
        for t in p.outputs:
            if outputs[t.name] is None:
                continue
            many = t.many
            for into, value in zip(
                *([outputs[t.name], results[t.name]] if many else [[outputs[t.name]], [results[t.name]]]),
                strict=True,
            ):
                assert into.shape == value.shape
                into.add_(value) if t.accumulates and accumulate else into.copy_(value)

    return function


def check_shape(spec, value):
    """A list where the contract has a list, a tensor or None elsewhere, of as many axes as the contract says."""
    if spec.many:
        assert isinstance(value, list)
    elif value is not None:
        assert value.dim() == len(spec.shape.split())


def reference_modules(model, B, T, dtype):
    return {
        (id, phase): SimpleNamespace(**{phase: reference_function(id.partition("/")[0], phase)})
        for id, phase in step_keys(model, B, T, dtype)
    }


def batch(model, B, T, seed):
    gen = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.v, (B, T + 1), generator=gen)
    return tokens[:, :-1], tokens[:, 1:]


def test_shapes_are_those_of_the_calls():
    """Each call's tensors have the sizes of the shape it is filed under, and each shape is called as often as it says."""
    B, T = 2, 8
    step = Step(Memory(SMALL, B, T, "fp32"), reference_modules(SMALL, B, T, "fp32"))
    shapes = step_shapes(SMALL, B, T, "fp32")
    count: dict = {}
    for call in [*step.first_calls, *step.update_calls]:
        count[call.key] = count.get(call.key, 0) + 1
        layer, shape = contract.load(call.id.partition("/")[0]), shapes[call.id].shape
        p = contract.pass_of(layer, call.phase)
        given = dict(zip(p.positional(), call.inputs, strict=True)) | call.outputs
        for t in p.tensors():
            value = given[t.name]
            assert (value is not None) == t.when(shape), (call.key, t.name)
            if value is not None:
                got = [tuple(x.shape) for x in (value if t.many else [value])]
                assert got == t.many_sizes(shape), (call.key, t.name)
        for name in p.scalars:
            assert given[name] == shape[name], (call.key, name)
    assert count == {key: shapes[key[0]].calls for key in step_keys(SMALL, B, T, "fp32")}
