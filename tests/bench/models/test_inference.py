"""Prefill and decode as lists of calls: what they say is what a plain network says of the whole text, token for token;
memory is planned once, and a step is one graph."""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import torch

from bench.cli import CannotGoOn
from bench.core.variants import discover
from bench.machine.devices import SPAN, open_device
from bench.models import CallId
from bench.models.calls import Call
from bench.models.choose import candidates, parse, race_calls
from bench.models.engine import MOVES, Engine
from bench.models.inference import META, Inference, Sizes, dequantised, inference, quantised_rows
from reference import contract
from reference.models.gpt2 import GPT2
from reference.models.llama2 import Llama2
from reference.models.model import Model
from reference.models.plain import init_parameters, network
from tests import truth_variants
from tests.bench.models.made_up import calls, reference
from tests.fake_gpu import FakeGpu

GPT = GPT2("small", L=2, NH=3, C=48, max_t=20, v=130)
GROUPED = Llama2("grouped", L=2, NH=4, NKV=2, C=32, H=40, max_t=20, v=130, eps=1e-3)
UNTIED = Llama2("untied", L=1, NH=2, NKV=2, C=16, H=24, max_t=20, v=90, tied=False)


def named(value: Any) -> Any:
    return getattr(value, "name", value)


MODELS = pytest.mark.parametrize("model", [GPT, GROUPED, UNTIED], ids=named)
PROMPTS = [[5, 1, 77, 3, 3], [88, 2, 9]]  # of two lengths
STEPS = 7


def sizes(dtype: str = "fp32", group: int = 0, **other: Any) -> Sizes:
    return Sizes(**{**dict(B=2, T=5, S=12, dtype=dtype, group=group, steps=STEPS), **other})


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> dict[tuple[str, str], ModuleType]:
    """{(layer, variant): module}, of PyTorch's own and of the reference in fp64."""
    layers = tuple(n for n in contract.layer_names() if n not in ("adamw", "global_norm"))
    folder = truth_variants.write(tmp_path_factory.mktemp("kernels"), layers=layers)
    names = ("torch.truth", "torch.eager")
    return {(v.layer, v.name): v.load() for v in discover((folder,)) if v.name in names and v.layer in layers}


def parameters(model: Model) -> dict[str, torch.Tensor]:
    """Random norms and biases too, so that none is the same by symmetry, and logits that tell tokens apart."""
    gen = torch.Generator().manual_seed(0)
    start = init_parameters(model, 0)
    return {n: p + 0.2 * torch.randn(p.shape, generator=gen) for n, p in start.items()}


def engine(
    model: Model, of: Sizes, variants, name: str = "torch.eager", device: Any = None, own: Mapping[str, Any] = {}
) -> Engine:
    """own: modules to take instead, by layer."""
    device = device or open_device("cpu")
    made = inference(model, of, device)
    modules = {id: own.get(id.layer) or variants[id.layer, name] for id in made.shapes}
    built = Engine(made, modules, device)
    built.load(parameters(model))
    return built


def said(built: Engine, prompts: list[list[int]] = PROMPTS, steps: int = STEPS) -> torch.Tensor:
    """Logits (B, steps, V) of each step, greedy."""
    built.begin(prompts, 0)
    built.prefill()
    found = [built.made.logits[:, : built.made.model.v].clone()]
    for _ in range(steps - 1):
        built.step()
        found.append(built.made.logits[:, : built.made.model.v].clone())
    return torch.stack(found, 1)


def wanted(model: Model, drawn: list[list[int]], prompts: list[list[int]] = PROMPTS, weights=None) -> torch.Tensor:
    """The same by the plain network in fp64: a whole forward pass over prompt and tokens."""
    net = network(model)
    net.load(weights or parameters(model))
    net = net.double()
    with torch.no_grad():
        rows = [
            net(torch.tensor([[*p, *d[:-1]]]))[0, len(p) - 1 :, : model.v] for p, d in zip(prompts, drawn, strict=True)
        ]
    return torch.stack(rows)


# --- right ---


@MODELS
@pytest.mark.parametrize(("dtype", "name", "tolerance"), [("fp64", "torch.truth", 2e-6), ("bf16", "torch.eager", 0.15)])
def test_decode_of_a_token_is_the_forward_pass_over_the_whole_text(variants, model, dtype, name, tolerance):
    """fp64 is limited by the statistics and angles, which are fp32."""
    built = engine(model, sizes(dtype), variants, name)
    ours = said(built)
    truth = wanted(model, built.tokens())
    assert (ours.double() - truth).abs().max() <= tolerance * truth.abs().max()


@MODELS
@pytest.mark.parametrize("name", ["torch.eager", pytest.param("cpu.naive", marks=pytest.mark.slow), "cpu.simd"])
def test_greedy_text_is_the_plain_networks_token_for_token(variants, model, name):
    """Of every backend that runs here: each layer by that variant where there is one."""
    own = {v.layer: v.load() for v in discover() if v.name == name}
    built = engine(model, sizes(), variants, own=own)
    assert {"gemv", "decode_attention"} <= own.keys()
    ours = said(built)
    truth = wanted(model, built.tokens())
    assert built.tokens() == truth.argmax(-1).tolist()
    assert (ours - truth).abs().max() <= 1e-5 * truth.abs().max()
    assert len({t for text in built.tokens() for t in text}) > 2, "a text of one token proves little"


@MODELS
def test_many_sequences_take_the_training_steps_matmul(variants, model):
    prompts = [[i, i + 1] for i in range(9)]
    built = engine(model, sizes(B=9, T=2, S=8), variants)
    assert not any(id.layer == "gemv" for id in built.made.shapes)
    said(built, prompts)
    assert built.tokens() == wanted(model, built.tokens(), prompts).argmax(-1).tolist()


@MODELS
def test_a_token_too_few_in_the_cache_is_seen(variants, model):
    """What the tests above are worth: attention that forgets the first key answers otherwise."""

    class Forgets:
        __name__ = "forgets"

        @staticmethod
        def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
            v_cache[:, :, 0] = 0
            variants["decode_attention", "torch.eager"].forward(
                qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache
            )

    built = engine(model, sizes(), variants, own={"decode_attention": Forgets})
    ours = said(built)
    truth = wanted(model, built.tokens())
    assert (ours - truth).abs().max() > 1e-3 * truth.abs().max()


@MODELS
@pytest.mark.parametrize("group", [16, 64])
def test_int8_is_near_the_network_of_the_weights_it_stands_for(variants, model, group):
    """Nearer than to another group's weights; what is left is the rounding of activations, half of 1 in 127 each."""
    built = engine(model, sizes(group=group), variants)
    assert {"q8_matmul", "q8_quantise"} <= {id.layer for id in built.made.shapes}
    ours = said(built)
    weights = parameters(model)
    for name, pair in built.made.quantised.items():
        if name != "wte":
            weights[name] = dequantised(*pair, group)
    truth = wanted(model, built.tokens(), weights=weights)
    assert (ours - truth).abs().max() <= 0.06 * truth.abs().max()


def test_int8_of_a_file_is_taken_as_it_is(variants):
    built = engine(GROUPED, sizes(group=16), variants)
    weights = parameters(GROUPED)
    given = {n: quantised_rows(w, 16) for n, w in weights.items() if w.dim() == 2}
    for values, scales in given.values():
        scales *= 3
        values[0, 0] = 5
    built.load({n: w for n, w in weights.items() if w.dim() == 1}, given)
    for name, (values, scales) in built.made.quantised.items():
        assert torch.equal(values, given[name][0]) and torch.equal(scales, given[name][1])
    assert torch.equal(built.made.weights["wte"], dequantised(*given["wte"], 16))


def test_rows_that_groups_do_not_divide():
    matrix = torch.randn(5, 77, generator=torch.Generator().manual_seed(0))
    values, scales = quantised_rows(matrix, 32)
    assert scales.shape == (5, 3) and values.shape == (5, 77)
    assert (dequantised(values, scales, 32) - matrix).abs().max() <= 0.5001 * scales.max()


def test_draws_are_the_seeds(variants):
    drawing = sizes(temperature=1.0, top_k=20, top_p=0.9)
    one, other = engine(GROUPED, drawing, variants), engine(GROUPED, drawing, variants)
    texts = [one.generate(PROMPTS, STEPS, seed=seed) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    assert other.generate(PROMPTS, STEPS, seed=1) == texts[0]


def test_a_text_can_end_before_its_time(variants):
    built = engine(GPT, sizes(), variants)
    heard: list[list[int]] = []

    def each(tokens: list[int]) -> bool:
        heard.append(tokens)
        return len(heard) < 3

    stopped = built.generate(PROMPTS, STEPS, each=each)
    assert stopped == [text[:3] for text in built.generate(PROMPTS, STEPS)]
    assert heard == [list(step) for step in zip(*stopped, strict=True)]


# --- memory and shapes ---


@MODELS
@pytest.mark.parametrize("group", [0, 16])
def test_shapes_are_those_of_the_calls(model, group):
    """Each call's tensors have the sizes of the shape it is filed under, and are as many as the contract says."""
    made = inference(model, sizes("bf16", group), META)
    for call in [item for item in [*made.prefill, *made.decode] if isinstance(item, Call)]:
        shape = made.shapes[call.id].shape
        p = contract.pass_of(contract.load(call.id.layer), "forward")
        given: dict[str, Any] = dict(zip(p.positional(), call.inputs, strict=True)) | dict(call.outputs)
        for t in p.tensors():
            assert (given[t.name] is not None) == t.when(shape), (call.id, t.name)
            if given[t.name] is not None:
                assert tuple(given[t.name].shape) == t.sizes(shape), (call.id, t.name)
        for name in p.scalars:
            assert given[name] == shape[name], (call.id, name)


@MODELS
def test_what_is_planned_is_what_is_there(model):
    planned, there = inference(model, sizes(), META), inference(model, sizes())
    assert planned.bytes == there.bytes == sum(t.nbytes for t in there.tensors)
    assert planned.weight_bytes == 4 * model.parameters == planned.weight_bytes_read + _only_looked_up(model)
    assert planned.cache_bytes == 2 * 4 * 2 * 12 * _kv(model)
    assert planned.cache_bytes_read([12, 12]) == planned.cache_bytes


def _kv(model: Model) -> int:
    NKV = getattr(model, "NKV", model.NH)  # type: ignore[attr-defined]
    return model.L * NKV * model.head_size  # type: ignore[attr-defined]


def _only_looked_up(model: Model) -> int:
    """Bytes of tables that a step reads two rows of: a row a sequence."""
    shapes = model.parameter_shapes()
    tables = [n for n in ("wpe", "wte") if n in shapes and (n == "wpe" or "head.weight" in shapes)]
    return sum(4 * (shapes[n][0] - 2) * shapes[n][1] for n in tables)


def test_int8_reads_a_quarter_and_the_scales():
    big = Llama2("wide", L=2, NH=4, NKV=4, C=256, H=512, max_t=20, v=512, tied=False)
    fp32, int8 = (inference(big, sizes(group=group), META) for group in (0, 64))
    assert int8.weight_bytes_read / fp32.weight_bytes_read == pytest.approx((1 + 4 / 64) / 4, rel=0.02)


@MODELS
def test_flops_are_those_of_the_matrices(model):
    """2 a weight and token, the head's at the last token of each prompt, and the visible pairs."""
    made = inference(model, sizes(), META)
    shapes = model.parameter_shapes()
    matrices = sum(
        r * c for n, (r, *rest) in shapes.items() if rest and n[0] == "h" and n != "head.weight" for c in rest
    )
    head = model.vp * model.C  # type: ignore[attr-defined]
    pairs = 2 * 4 * (5 * 6 // 2) * model.L * model.C  # type: ignore[attr-defined]
    assert made.prefill_flops() == 2 * 10 * matrices + 2 * 2 * head + pairs


def test_a_family_that_only_trains_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "bench.models.made_up", calls)
    with pytest.raises(CannotGoOn, match="made-up cannot generate"):
        inference(reference.MadeUp("made-up", L=1, C=24, max_t=20, v=90), sizes(), META)


def test_what_does_not_fit_is_refused(variants):
    with pytest.raises(ValueError, match="do not fit into 20 positions"):
        inference(GPT, sizes(S=21), META)
    built = engine(GPT, sizes(), variants)
    for prompts in ([[1]], [[1], []], [[1], [1] * 6]):
        with pytest.raises(ValueError, match="prompts"):
            built.begin(prompts, 0)
    with pytest.raises(ValueError, match="do not fit"):
        built.generate(PROMPTS, STEPS + 1)
    weights = parameters(GPT)
    weights["foreign"] = weights.pop("wpe")
    with pytest.raises(ValueError, match="foreign"):
        built.load(weights)


# --- recorded calls ---


@pytest.mark.parametrize(("model", "group"), [(GPT, 16), (GROUPED, 0), (UNTIED, 16)], ids=named)
def test_recorded_calls_write_the_same_text(variants, model, group):
    """Fewer things to run, and bit for bit what the variants leave, at other prompts than they were recorded at."""
    own = {v.layer: v.load() for v in discover() if v.name == "cpu.simd"}
    drawing = sizes(group=group, temperature=1.0, top_k=30)
    plain, recorded = (engine(model, drawing, variants, own=own) for _ in range(2))
    assert recorded.record() is None and recorded.next is not recorded.plain
    assert sum(getattr(f, "__name__", "") == "forward" for f, _, _ in recorded.next) == 0
    for seed in (0, 1):
        assert plain.generate(PROMPTS, STEPS, seed) == recorded.generate(PROMPTS, STEPS, seed)
    assert torch.equal(plain.made.logits, recorded.made.logits)


def test_a_variant_that_does_more_than_call_cpp_runs_as_ever(variants):
    simd = next(v for v in discover() if (v.layer, v.name) == ("swiglu", "cpu.simd")).load()

    class More:
        __name__ = "more"

        @staticmethod
        def forward(x, *, out):
            simd.forward(x, out=out)
            out.mul_(0.5)

    built, other = (engine(GROUPED, sizes(), variants, own={"swiglu": More}) for _ in range(2))
    assert "other results" in (built.record() or "")
    assert built.next is built.plain
    assert built.generate(PROMPTS, STEPS) == other.generate(PROMPTS, STEPS)


# --- on a GPU, here the made-up one ---


@pytest.fixture
def gpu():
    made = FakeGpu()
    yield made
    made.close()


@pytest.mark.parametrize(("model", "group"), [(GPT, 0), (GROUPED, 16), (UNTIED, 0)], ids=named)
def test_a_captured_step_is_the_plain_one_token_for_token(gpu, variants, model, group):
    """Lengths, tokens, their count and the numbers of draws are all read anew at each replay."""
    drawing = sizes(group=group, temperature=1.0, top_k=30)
    plain, captured = (engine(model, drawing, variants, device=gpu) for _ in range(2))
    assert captured.capture() is None and captured.replay
    for seed in (0, 1):
        assert plain.generate(PROMPTS, STEPS, seed) == captured.generate(PROMPTS, STEPS, seed)


def test_a_replay_is_one_launch_and_nothing_is_read_back_between(gpu, variants):
    built = engine(GROUPED, sizes(), variants, device=gpu)
    assert built.capture() is None
    built.begin(PROMPTS, 0)
    built.prefill()

    def host_seconds(plain: bool) -> float:
        with gpu.timer(SPAN) as timer:
            timer.start()
            built.step(plain)
            timer.stop()
        return timer.host_seconds[0]

    assert host_seconds(plain=True) > 20 * host_seconds(plain=False)


def test_memory_is_constant_over_replays(gpu, variants):
    built = engine(GPT, sizes(), variants, device=gpu)
    assert built.capture() is None
    built.generate(PROMPTS, STEPS)
    addresses, before = [t.data_ptr() for t in built.made.tensors], gpu.memory()[0]
    for _ in range(3):
        built.generate(PROMPTS, STEPS)
    assert gpu.memory()[0] == before
    assert addresses == [t.data_ptr() for t in built.made.tensors]


def test_what_breaks_the_capture_is_named_and_the_text_goes_on_without(gpu, variants):
    class Looks:
        """PyTorch's sampling, which looks at a number in between."""

        __name__ = "torch.sampling.looks"

        @staticmethod
        def forward(*args, **outputs):
            variants["sampling", "torch.eager"].forward(*args, **outputs)
            outputs["token"].sum().item()

    built = engine(GPT, sizes(), variants, device=gpu, own={"sampling": Looks})
    told = built.capture()
    assert told and told.startswith("sampling forward: RuntimeError: ") and "capturing" in told
    assert built.replay is None
    assert built.generate(PROMPTS, STEPS) == engine(GPT, sizes(), variants, device=gpu).generate(PROMPTS, STEPS)


# --- choosing ---


def test_candidates_need_no_backward_and_are_raced_at_their_calls(tmp_path):
    """A variant without a backward cannot train, and can generate."""
    truth_variants.write(tmp_path, "alone", ("gelu",))
    file = tmp_path / "torch" / "gelu" / "alone.py"
    file.write_text(file.read_text().partition("def backward")[0])
    made = inference(GPT, sizes(), "cpu")
    spec, found = parse("torch.eager,gelu=torch.alone"), discover((tmp_path,))
    pool = candidates(spec, found, made.shapes, "cpu", "fp32", what="the generation")
    gelu = CallId("gelu", "decode", "forward")
    assert [v.name for v in pool[gelu]] == ["torch.alone"]
    both = {gelu: [v for v in found if v.layer == "gelu" and v.name in ("torch.alone", "torch.eager")]}
    made.fill_random()
    made_calls = [item for item in [*made.prefill, *made.decode] if isinstance(item, Call)]
    shapes = {id: call.shape for id, call in made.shapes.items()}
    times = race_calls(made_calls, shapes, open_device("cpu"), both)
    assert times.ms[gelu].keys() == {"torch.alone", "torch.eager"} and not times.skipped[gelu]


def test_filled_memory_can_be_run(variants):
    """Whatever is raced meets valid ids, lengths and angles."""
    for model in (GPT, GROUPED):
        for group in (0, 16):
            made: Inference = inference(model, sizes(group=group))
            built = Engine(made, {id: variants[id.layer, "torch.eager"] for id in made.shapes}, open_device("cpu"))
            made.fill_random()
            timed = built.timed(prefill=True)
            made.fill_random()
            timed |= built.timed(prefill=False)
            assert timed.keys() == made.shapes.keys() | {MOVES}
            assert int(made.token.min()) >= 0 and int(made.token.max()) < model.v
