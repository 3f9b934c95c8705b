"""The training step: its gradients are PyTorch's, its memory is planned once, its clocks account for every call."""

import contextlib
import math
import resource
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from bench.checkpoints.state import State
from bench.core.variants import Variant, discover
from bench.models import CallId
from bench.models.choose import Cache, candidates, fastest, parse, race, why_not
from bench.models.program import program, step_calls
from bench.models.step import Step
from reference import contract
from reference.models.gpt2 import GPT2, Network, init_parameters
from reference.models.plain import decay_groups
from tests import truth_variants

SMALL = GPT2("small", L=3, NH=3, C=48, max_t=24, v=300)
B, T = 2, 8
NORM = CallId("global_norm", "", "forward")


@pytest.fixture(scope="session")
def truth(tmp_path_factory) -> dict:
    """{layer: the imported torch.truth variant}."""
    folder = truth_variants.write(tmp_path_factory.mktemp("kernels"))
    return {v.layer: v.load() for v in discover((folder,)) if v.name == "torch.truth"}


def build(truth: dict, dtype: str, accumulation: int = 1, model: GPT2 = SMALL) -> Step:
    modules = {id: truth[id.layer] for id in step_calls(model, B, T, dtype)}
    return Step(program(model, B, T, dtype), modules, accumulation)


def everywhere(module: Any) -> dict[CallId, Any]:
    """The same module for every call."""
    return dict.fromkeys(step_calls(SMALL, B, T, "fp32"), module)


def parameters(dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Initial parameters with random biases and layernorm weights, so that no gradient is the same by symmetry."""
    gen = torch.Generator().manual_seed(seed)
    start = init_parameters(SMALL, seed)
    return {n: (p + 0.05 * torch.randn(p.shape, generator=gen)).to(dtype) for n, p in start.items()}


def batch(seed: int, model: GPT2 = SMALL) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, model.v, (B, T + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def autograd(start: dict[str, torch.Tensor], batches: list) -> tuple[torch.Tensor, dict[str, torch.Tensor], Network]:
    """Loss and gradients of the plain GPT-2 in fp64."""
    model = Network(SMALL).double()
    model.load(start)
    loss = torch.stack([model(*b) for b in batches]).mean()
    loss.backward()
    grads = {n: p.grad for n, p in model.named().items() if p.grad is not None}
    return loss.detach(), grads, model


def test_shapes_are_those_of_the_calls(truth):
    same_shapes(build(truth, "bf16"), step_calls(SMALL, B, T, "bf16"))


def same_shapes(step, calls):
    """Each call's tensors have the sizes of the shape it is filed under, and are as many as the contract says."""
    count: dict = {}
    for call in [*step.first_calls, *step.update_calls]:
        count[call.id] = count.get(call.id, 0) + 1
        shape = calls[call.id].shape
        p = contract.pass_of(contract.load(call.id.layer), call.id.phase)
        given: dict[str, Any] = dict(zip(p.positional(), call.inputs, strict=True)) | dict(call.outputs)
        for t in p.tensors():
            value = given[t.name]
            assert (value is not None) == t.when(shape), (call.id, t.name)
            if value is not None:
                assert [tuple(x.shape) for x in (value if t.many else [value])] == t.many_sizes(shape), (
                    call.id,
                    t.name,
                )
        for name in p.scalars:
            assert given[name] == shape[name], (call.id, name)
    assert count == {id: call.calls for id, call in calls.items()}


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp64", 1e-6), ("fp32", 3e-6), ("bf16", 0.03)])
def test_every_gradient_is_autograds(truth, dtype, tolerance, accumulation):
    """fp64 is limited by the fp32 statistics that layernorm and attention save; bf16 by its activations."""
    step = build(truth, dtype, accumulation)
    start = parameters({"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    batches = [batch(i) for i in range(accumulation)]
    loss, grads, _ = autograd(start, batches)
    step.load(start)
    step.gradients(batches)
    assert step.memory.loss.item() == pytest.approx(loss.item(), rel=max(tolerance / 10, 1e-6))
    for name, want in grads.items():
        got = step.memory.grads[name].double()
        assert (got - want).norm() <= tolerance * want.norm(), name


def test_second_step_overwrites_gradients(truth):
    """Nothing of the last step is left in any gradient, rows of wte and wpe that are not used included."""
    step = build(truth, "fp32")
    step.load(parameters(torch.float32))
    step.gradients([batch(1)])
    once = {n: g.clone() for n, g in step.memory.grads.items()}
    step.gradients([batch(2)])
    step.gradients([batch(1)])
    for name, grad in step.memory.grads.items():
        assert torch.equal(grad, once[name]), name


def test_training_is_pytorchs(truth):
    """Ten steps with clipping, decay and AdamW: loss, norm and every parameter as torch's AdamW makes them."""
    step = build(truth, "fp64")
    start = parameters(torch.float64)
    step.load(start)
    _, _, model = autograd(start, [batch(0)])
    model.zero_grad()
    optimizer = torch.optim.AdamW(decay_groups(dict(model.named()), 0.1), lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for i in range(10):
        loss, norm = step.run([batch(i)], lr=1e-3)
        want = model(*batch(i))
        want.backward()
        want_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), SMALL.recipe.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert loss == pytest.approx(want.item(), rel=1e-5)
        assert norm == pytest.approx(want_norm.item(), rel=1e-4)
    assert norm > SMALL.recipe.max_norm  # so the clip was at work
    for name, p in model.named().items():
        assert torch.allclose(step.memory.params[name], p, atol=2e-5), name


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_without_a_finite_norm_there_is_no_update(truth, dtype, norm):
    """The norm of the second step is not finite: it says so and leaves no trace, in no way of running a step."""

    norms = [3.0, norm, norm, norm, 2.0]
    wild = ModuleType("wild")
    wild.forward = lambda grads, **outputs: outputs["norm"].fill_(norms.pop(0))  # type: ignore[attr-defined]
    modules = {id: truth[id.layer] for id in step_calls(SMALL, B, T, dtype)}
    step = Step(program(SMALL, B, T, dtype), {**modules, NORM: wild})
    step.load(parameters(torch.float32))
    mem = step.memory
    assert step.run([batch(0)], 1e-2)[1] == 3.0
    kept = [t.clone() for t in (mem.flat_params, mem.flat_m, mem.flat_v, mem.step)]
    _, told = step.run([batch(1)], 1e-2)
    assert not math.isfinite(told)
    assert step.run_timed([batch(1)], 1e-2)[CallId("adamw", "", "forward")] == 0
    step.run_marked([batch(1)], 1e-2, lambda id: contextlib.nullcontext())
    for before, after in zip(kept, (mem.flat_params, mem.flat_m, mem.flat_v, mem.step), strict=True):
        assert torch.equal(before, after)
    step.run([batch(2)], 1e-2)
    assert mem.step == 2 and not torch.equal(kept[0], mem.flat_params)


def test_bf16_parameters_are_rounded_masters(truth):
    step = build(truth, "bf16")
    step.load(parameters(torch.bfloat16))
    for i in range(3):
        step.run([batch(i)], lr=1e-2)
    assert step.memory.masters is not None
    for name, p in step.memory.params.items():
        assert torch.equal(p, step.memory.masters[name].bfloat16()), name


def test_parameters_are_one_aligned_buffer():
    odd = GPT2("odd", L=1, NH=1, C=20, max_t=8, v=100)
    for dtype in ("fp32", "bf16"):
        mem = program(odd, 1, 4, dtype).memory
        assert list(mem.params) == list(odd.parameter_shapes())
        for views in (mem.params, mem.grads, mem.m, mem.v, mem.masters or {}):
            starts = [t.data_ptr() for t in views.values()]
            assert starts == sorted(starts)
            assert all(s % 64 == 0 for s in starts)
            assert len({t.untyped_storage().data_ptr() for t in views.values()}) <= 1
            assert {n: tuple(t.shape) for n, t in views.items()} in ({}, odd.parameter_shapes())


def test_memory_is_constant_over_twenty_steps():
    """The step touches only what it planned. Kernels of our own where they run: torch's allocate inside."""
    model = GPT2("medium", L=2, NH=4, C=128, max_t=32, v=5000)
    calls = step_calls(model, 2, 32, "fp32")
    wanted = ("torch.eager", "cpu.simd")  # the later one wins
    found = [v for v in discover() if v.name in wanted and not why_not(v, "cpu", "fp32")]
    best = {v.layer: v for v in sorted(found, key=lambda v: wanted.index(v.name))}
    step = Step(program(model, 2, 32, "fp32"), {id: best[id.layer].load() for id in calls})
    step.load(init_parameters(model, 0))
    tokens = torch.randint(0, model.v, (2, 33), generator=torch.Generator().manual_seed(0))
    batches = [(tokens[:, :-1], tokens[:, 1:])]
    addresses = [t.data_ptr() for t in step.memory.tensors]
    for _ in range(5):
        step.run(batches, 1e-4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        step.run(batches, 1e-4)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 0.05 * step.bytes / 1024, f"peak memory grew by {grown} KiB over 20 steps"
    assert addresses == [t.data_ptr() for t in step.memory.tensors]


def test_a_step_creates_no_tensor_of_consequence(truth):
    """What the step itself does between variants allocates scalars at most: variants replaced by nothing."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            known = {id(t) for t in args if isinstance(t, torch.Tensor)} | {id((kwargs or {}).get("out"))}
            if isinstance(out, torch.Tensor) and id(out) not in known:
                self.largest = max(self.largest, out.numel())
            return out

    class Nothing:
        forward = backward = staticmethod(lambda *args, **outputs: None)

    step = Step(program(SMALL, B, T, "fp32"), everywhere(Nothing))
    batches = [batch(0)]
    with Sizes() as sizes:
        step.run(batches, 1e-3)
    assert sizes.largest <= 1


def test_workspace_is_shared_and_as_large_as_the_largest_wish():
    seen: list = []

    class Greedy:
        @staticmethod
        def workspace(shape, phase):
            return shape["N"] * (1 if phase == "forward" else 3) if "N" in shape else 0

        @staticmethod
        def forward(*args, workspace, **outputs):
            seen.append(workspace)

        backward = forward

    step = Step(program(SMALL, B, T, "fp32"), everywhere(Greedy))
    assert step.workspace.numel() == 3 * SMALL.vp
    step.run([batch(0)], 1e-3)
    given = [w for w in seen if w is not None]
    assert {w.data_ptr() for w in given} == {step.workspace.data_ptr()}
    assert {w.numel() for w in given} == {n * f for n in (48, 144, 192, SMALL.vp) for f in (1, 3)}
    assert None in seen  # a wish for nothing is None, not an empty tensor


def test_times_in_context_cover_every_call(truth):
    step = build(truth, "fp32", accumulation=2)
    step.load(parameters(torch.float32))
    times = step.run_timed([batch(0), batch(1)], 1e-3)
    assert set(times) == set(step_calls(SMALL, B, T, "fp32"))
    assert all(ms > 0 for ms in times.values())


def test_a_clock_does_not_change_the_step(truth):
    plain, clocked = build(truth, "fp32"), build(truth, "fp32")
    for step in (plain, clocked):
        step.load(parameters(torch.float32))
    loss, norm = plain.run([batch(0)], 1e-3)
    clocked.run_timed([batch(0)], 1e-3)
    assert (loss, norm) == (clocked.memory.loss.item(), clocked.memory.norm.item())
    for name, p in plain.memory.params.items():
        assert torch.equal(p, clocked.memory.params[name]), name


def test_wrong_use_is_an_error(truth):
    with pytest.raises(ValueError, match="positions"):
        program(SMALL, 1, SMALL.max_t + 1, "fp32")
    step = build(truth, "fp32", accumulation=2)
    with pytest.raises(ValueError, match="micro-batches"):
        step.run([batch(0)], 1e-3)
    with pytest.raises(ValueError, match=r"lnf\.bias"):
        step.load({n: p for n, p in parameters(torch.float32).items() if n != "lnf.bias"})


# --- the trainer's ---


def test_two_halves_are_a_step(truth):
    whole, halves = build(truth, "fp32", 2), build(truth, "fp32", 2)
    batches = [batch(0), batch(1)]
    for step in (whole, halves):
        step.load(parameters(torch.float32))
    told = whole.run(batches, 1e-2)
    assert halves.measure(batches) == told
    untouched = {n: p.clone() for n, p in halves.memory.params.items()}
    assert all(torch.equal(p, parameters(torch.float32)[n]) for n, p in untouched.items())
    halves.update(1e-2)
    assert torch.equal(whole.memory.flat_params, halves.memory.flat_params)
    assert not torch.equal(halves.memory.params["wte"], untouched["wte"])


def test_forward_alone_is_plain_pytorchs_and_changes_nothing(truth):
    step = build(truth, "fp32")
    start = parameters(torch.float32)
    step.load(start)
    step.run([batch(0)], 1e-2)
    step.measure([batch(1)])
    mem = step.memory
    kept = [t.clone() for t in (mem.flat_params, mem.flat_grads, mem.flat_m, mem.flat_v, mem.step)]
    plain = Network(SMALL)
    plain.load(mem.params)
    tokens, targets = batch(5)
    logits = plain(tokens)
    wanted = torch.nn.functional.cross_entropy(logits.transpose(1, 2)[:, : SMALL.v], targets, reduction="none")
    torch.testing.assert_close(step.evaluate((tokens, targets)), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(step.logits(tokens)[..., : SMALL.v], logits[..., : SMALL.v], rtol=1e-4, atol=1e-4)
    for before, after in zip(kept, (mem.flat_params, mem.flat_grads, mem.flat_m, mem.flat_v, mem.step), strict=True):
        assert torch.equal(before, after)


def copied(step: Step, number: int) -> State:
    """What a checkpoint holds of a step."""
    state = step.state(number, {"more": 1})

    def own(named):
        return None if named is None else {n: t.clone() for n, t in named.items()}

    m, v, masters = own(state.m), own(state.v), own(state.masters)
    return replace(state, weights=own(state.weights), m=m, v=v, masters=masters)


@pytest.mark.parametrize("masters", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_state_is_all_that_training_goes_on_from(truth, dtype, masters):
    def made() -> Step:
        modules = {id: truth[id.layer] for id in step_calls(SMALL, B, T, dtype)}
        return Step(program(SMALL, B, T, dtype, masters=masters), modules, 2, seed=3)

    whole, later = made(), made()
    assert (whole.memory.masters is None) == (dtype == "fp32" or not masters)
    whole.load(parameters(torch.float32))
    for i in range(3):
        whole.run([batch(i), batch(i + 1)], 1e-2)
    state = copied(whole, 3)
    assert (state.step, state.rest) == (3, {"more": 1, "updates": 3})
    later.load_state(state)
    for step in (whole, later):
        for i in range(3, 6):
            step.run([batch(i), batch(i + 1)], 1e-2)
    assert torch.equal(whole.memory.flat_params, later.memory.flat_params)
    assert torch.equal(whole.memory.flat_m, later.memory.flat_m)
    assert later.memory.step == 6


def test_without_masters_weights_are_masters_rounded_at_random(truth):
    """After one step: AdamW in fp32 from the same weights, and each weight one of its two neighbours."""
    modules = {id: truth[id.layer] for id in step_calls(SMALL, B, T, "bf16")}
    steps = [Step(program(SMALL, B, T, "bf16", masters=m), modules, seed=1) for m in (True, False)]
    for step in steps:
        step.load(parameters(torch.bfloat16))
        step.run([batch(0)], 1e-3)
    with_masters, without = (step.memory for step in steps)
    assert with_masters.masters is not None
    differ = 0
    for name, master in with_masters.masters.items():
        got = without.params[name].float()
        assert ((got - master).abs() <= master.abs() * 2**-7 + 1e-30).all(), name
        differ += int((got != master.bfloat16().float()).sum())
    assert differ > 1000  # to the nearest it would be none
    assert torch.equal(with_masters.flat_m, without.flat_m)
    assert steps[1].bytes < steps[0].bytes


def test_where_it_began_not_to_be_finite(truth):
    """The first tensor in the order of the calls, not the last; a parameter before all."""
    step = build(truth, "fp32", 2)
    step.load(parameters(torch.float32))
    batches = [batch(0), batch(1)]
    assert step.first_not_finite(batches) == ""
    spoil(step, step.later, step.later_calls, "matmul/fcproj backward", 2, "dx")
    assert step.first_not_finite(batches) == "dx of matmul/fcproj backward, call 2 of 3 in micro-batch 2"
    spoil(step, step.first, step.first_calls, "residual_layernorm/block forward", 4, "out")
    assert step.first_not_finite(batches) == "out of residual_layernorm/block forward, call 4 of 5 in micro-batch 1"
    step.memory.params["h1.fc.bias"][3] = torch.nan
    assert step.first_not_finite(batches) == "parameter h1.fc.bias, before the step"


def spoil(step: Step, bounds: list, calls: list, id: str, nth: int, output: str) -> None:
    """Have a call write a NaN."""
    at = [i for i, c in enumerate(calls) if str(c.id) == id][nth - 1]
    function, args, outputs = bounds[at]

    def wrong(*args, **outputs):
        function(*args, **outputs)
        outputs[output].view(-1)[7] = torch.nan

    bounds[at] = (wrong, args, outputs)


# --- choosing variants ---


@pytest.fixture
def variants(tmp_path):
    """Truth for every layer, and an attention without backward."""
    truth_variants.write(tmp_path)
    file = tmp_path / "torch" / "attention" / "inference.py"
    file.write_text('"""Forward only."""\n\n\ndef forward(q, k, v, causal, *, out, lse):\n    pass\n')
    return [v for v in discover((tmp_path,)) if v.path.is_relative_to(tmp_path)]


def choose(text: str, variants: list, dtype: str = "fp32") -> dict:
    calls = step_calls(SMALL, B, T, dtype)
    pool = candidates(parse(text), variants, calls, "cpu", dtype)
    assert list(pool) == list(calls)
    return {str(id): [v.name for v in found] for id, found in pool.items()}


def test_kernels_list(variants):
    assert choose("fastest", variants)["matmul/qkv forward"] == ["torch.truth"]
    eager = [v for v in discover() if v.layer == "matmul" and v.name == "torch.eager"]
    both = [*variants, *eager]
    assert set(choose("torch", both)["matmul/qkv backward"]) == {"torch.truth", "torch.eager"}
    named = choose("torch.truth,matmul/fc=torch.eager", both)
    assert named["matmul/fc backward"] == ["torch.eager"]
    assert named["matmul/qkv backward"] == ["torch.truth"]
    assert choose("matmul=torch.eager", both)["matmul/lm_head forward"] == ["torch.eager"]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("fastest,torch", 64, "one of them"),
        ("torch.trut", 64, "did you mean 'torch.truth'"),
        ("atention=torch.truth", 64, "did you mean 'attention'"),
        ("attention=torch.inference", 3, "no backward"),
        ("cpu", 3, "no variant of embedding"),
        ("fastest,,", 64, "empty entry"),
    ],
)
def test_kernels_list_errors(variants, text, code, message):
    from bench.cli import CannotGoOn

    with pytest.raises(CannotGoOn, match=message) as caught:
        choose(text, variants)
    assert caught.value.code == code


def test_a_forward_without_backward_is_never_picked(variants):
    assert choose("fastest", variants)["attention forward"] == ["torch.truth"]


def test_race_finds_the_faster_one_and_remembers(tmp_path):
    truth_variants.write(tmp_path)
    truth_variants.write(tmp_path, "slow", ("global_norm",))
    file = tmp_path / "torch" / "global_norm" / "slow.py"
    file.write_text(file.read_text().replace("    truth_variants", "    time.sleep(0.05)\n    truth_variants", 1))
    file.write_text(file.read_text().replace("from tests", "import time\n\nfrom tests", 1))
    broken = tmp_path / "torch" / "global_norm" / "broken.py"
    broken.write_text('"""Raises."""\n\n\ndef forward(grads, *, norm):\n    raise OSError("no such card")\n')
    found = [v for v in discover((tmp_path,)) if v.layer == "global_norm" and v.path.is_relative_to(tmp_path)]
    pool = {NORM: found}
    times = race(program(SMALL, B, T, "fp32"), pool)
    assert fastest(pool, times)[NORM].name == "torch.truth"
    assert times.ms[NORM]["torch.slow"] > 50
    assert "no such card" in times.skipped[NORM]["torch.broken"]

    shapes = {id: c.shape for id, c in step_calls(SMALL, B, T, "fp32").items()}
    file = tmp_path / "times.json"
    Cache(file, ["this machine"]).keep(pool, shapes, times)
    assert Cache(file, ["this machine"]).take(pool, shapes) == times
    assert Cache(file, ["another machine"]).take(pool, shapes).ms == {}
    bf16 = {id: {**shape, "dtype": "bf16"} for id, shape in shapes.items()}
    assert Cache(file, ["this machine"]).take(pool, bf16).ms == {}
    broken.write_text(broken.read_text() + "\n# another source\n")
    assert Cache(file, ["this machine"]).take(pool, shapes).ms == {}
    file.write_text("{ damaged")
    assert Cache(file, ["this machine"]).take(pool, shapes).ms == {}


def test_what_compiles_for_long_comes_last_and_only_in_time(monkeypatch):
    """By its name: here it computes as torch.eager does, for a compilation takes seconds."""
    names = ("torch.eager", "torch.compile")
    found = [v for v in discover() if v.layer == "global_norm" and v.name in names]
    pool = {NORM: found}
    assert len(found) == 2
    eager = next(v for v in found if v.name == "torch.eager").load()
    monkeypatch.setattr(Variant, "load", lambda self: eager)
    times = race(program(SMALL, B, T, "fp32"), pool, budget=0)
    assert list(times.ms[NORM]) == ["torch.eager"]
    assert "spent" in times.skipped[NORM]["torch.compile"]
    only = {key: [v for v in found if v.name == "torch.compile"] for key in pool}
    assert list(race(program(SMALL, B, T, "fp32"), only, budget=0).ms.values()) != [{}]


def test_a_variant_hopeless_at_a_small_shape_is_not_tried_at_a_large_one(tmp_path):
    truth_variants.write(tmp_path)
    truth_variants.write(tmp_path, "slow", ("matmul",))
    file = tmp_path / "torch" / "matmul" / "slow.py"
    slow = file.read_text().replace("    truth_variants", "    time.sleep(x.numel() * 2.5e-4)\n    truth_variants")
    file.write_text(slow.replace("from tests", "import time\n\nfrom tests", 1))
    model = GPT2("wide", L=1, NH=1, C=32, max_t=32, v=3000)
    found = [v for v in discover((tmp_path,)) if v.layer == "matmul" and v.path.is_relative_to(tmp_path)]
    small, large = (CallId("matmul", shape, "forward") for shape in ("attproj", "lm_head"))
    pool = {small: found, large: found}
    times = race(program(model, 2, 32, "fp32"), pool)
    assert "torch.slow" in times.ms[small]
    assert "times slower at a smaller shape" in times.skipped[large]["torch.slow"]
