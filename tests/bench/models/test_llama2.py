"""Llama 2's training step: its calls are those it lists, its gradients are PyTorch's, a tied head or not."""

from dataclasses import replace

import pytest
import torch

from bench.core.variants import discover
from bench.models import CallId
from bench.models.choose import candidates, parse, race
from bench.models.program import program, recomputable, step_calls
from bench.models.step import Step
from reference.models.llama2 import Llama2, init_parameters
from reference.models.plain import Plain, decay_groups, network
from tests import truth_variants
from tests.bench.models.test_step import same_shapes

SMALL = Llama2("small", L=3, NH=4, NKV=2, C=48, H=40, max_t=24, v=300, eps=1e-3)
UNTIED = replace(SMALL, NKV=4, tied=False)
B, T = 2, 8


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> dict:
    """{layer: the imported torch.truth variant}."""
    layers = tuple(dict.fromkeys(id.layer for id in step_calls(SMALL, B, T, "fp32")))
    folder = truth_variants.write(tmp_path_factory.mktemp("kernels"), layers=layers)
    return {v.layer: v.load() for v in discover((folder,)) if v.name == "torch.truth"}


def build(truth: dict, dtype: str, accumulation: int = 1, model: Llama2 = SMALL, recompute: tuple[str, ...] = ()):
    modules = {id: truth[id.layer] for id in step_calls(model, B, T, dtype, recompute)}
    return Step(program(model, B, T, dtype, recompute=recompute), modules, accumulation)


def parameters(model: Llama2, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Initial parameters with random norm weights, so that no gradient is the same by symmetry."""
    gen = torch.Generator().manual_seed(0)
    return {n: (p + 0.05 * torch.randn(p.shape, generator=gen)).to(dtype) for n, p in init_parameters(model, 0).items()}


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, SMALL.v, (B, T + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def autograd(model: Llama2, start: dict[str, torch.Tensor], batches: list) -> tuple[torch.Tensor, Plain]:
    """Loss of the plain model in fp64, its gradients within."""
    plain = network(model).double()
    plain.load(start)
    loss = torch.stack([plain(*b) for b in batches]).mean()
    loss.backward()
    return loss.detach(), plain


@pytest.mark.parametrize("model", [SMALL, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("recompute", [(), ("swiglu", "rmsnorm")], ids=["kept", "recomputed"])
def test_shapes_are_those_of_the_calls(truth, model, recompute):
    step = build(truth, "bf16", model=model, recompute=recompute)
    same_shapes(step, step_calls(model, B, T, "bf16", recompute))


@pytest.mark.parametrize(
    ("dtype", "tolerance", "accumulation", "model", "recompute"),
    [
        ("fp64", 1e-6, 2, SMALL, ()),
        ("fp64", 1e-6, 2, UNTIED, ()),
        ("fp32", 3e-6, 1, SMALL, ("swiglu", "rmsnorm")),
        ("bf16", 0.03, 1, UNTIED, ("swiglu",)),
    ],
    ids=["tied", "untied", "recomputed", "bf16"],
)
def test_every_gradient_is_autograds(truth, dtype, tolerance, accumulation, model, recompute):
    """fp64 is limited by the fp32 statistics that the norms and attention save; bf16 by its activations."""
    step = build(truth, dtype, accumulation, model, recompute)
    start = parameters(model, {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    batches = [batch(i) for i in range(accumulation)]
    loss, plain = autograd(model, start, batches)
    step.load(start)
    for _ in range(2):  # the second time nothing is left of the first
        step.gradients(batches)
    assert step.memory.loss.item() == pytest.approx(loss.item(), rel=max(tolerance / 10, 1e-6))
    for name, p in plain.named().items():
        assert p.grad is not None, name
        got = step.memory.grads[name].double()
        assert (got - p.grad).norm() <= tolerance * p.grad.norm(), name


def test_what_is_computed_again_is_not_kept(truth):
    kept, again = build(truth, "bf16"), build(truth, "bf16", recompute=("swiglu", "rmsnorm"))
    assert recomputable(SMALL) == ["swiglu", "rmsnorm"]
    assert again.memory.saved_bytes > 0 and again.bytes == kept.bytes - again.memory.saved_bytes


def test_training_is_pytorchs(truth):
    """Three steps with clipping, decay and AdamW: loss, norm and every parameter as torch's AdamW makes them."""
    step, start = build(truth, "fp64", model=UNTIED), parameters(UNTIED, torch.float64)
    step.load(start)
    _, plain = autograd(UNTIED, start, [batch(0)])
    plain.zero_grad()
    optimizer = torch.optim.AdamW(decay_groups(dict(plain.named()), 0.1), lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for i in range(3):
        loss, norm = step.run([batch(i)], lr=1e-3)
        want = plain(*batch(i))
        want.backward()
        want_norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert loss == pytest.approx(want.item(), rel=1e-5)
        assert norm == pytest.approx(want_norm.item(), rel=1e-4)
    for name, p in plain.named().items():
        assert torch.allclose(step.memory.params[name], p, atol=2e-5), name


def test_a_race_leaves_positions_and_angles_as_they_are():
    """Contents to time with are random; a position past the table of angles would be read from anywhere."""
    made = program(SMALL, B, T, "fp32")
    before = [t.clone() for t in (made.start, made.cos, made.sin)]  # type: ignore[attr-defined]
    calls = step_calls(SMALL, B, T, "fp32")
    pool = candidates(parse("torch.eager"), discover(), calls, "cpu", "fp32")
    rope = CallId("rope", "", "forward")
    times = race(made, {rope: pool[rope]})
    assert times.ms[rope]["torch.eager"] > 0
    for kept, now in zip(before, (made.start, made.cos, made.sin), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(kept, now)
    assert made.memory.params["wte"].any()


@pytest.mark.parametrize("model", [SMALL, UNTIED], ids=["tied", "untied"])
def test_narrow_makes_the_same_calls(model):
    """What bench.scaling lays out a step with: as many calls of the same names over next to nothing."""
    small = model.narrow()
    ids = [c.id for c in program(small, 1, 1, "fp32").forward_backward(False)]
    assert ids == [c.id for c in program(model, 1, 1, "fp32").forward_backward(False)]
    assert (small.C, small.H, small.vp) == (8 * model.NH, 8, 128)
