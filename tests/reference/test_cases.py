"""Each structured case has a careless kernel that it finds: one that is right on plain input, on every shape.

The kernels are what public ones got wrong, in a few lines of torch in fp32.
"""

import pytest
import torch

from bench.core.case import DTYPES, Case, cases_of, draw, map, one
from bench.trial import accuracy, truth
from reference import (
    attention,
    contract,
    cross_entropy,
    embedding,
    gelu,
    layernorm,
    q8_matmul,
    q8_quantise,
    rmsnorm,
    rope,
    sampling,
    softmax,
    swiglu,
)

SEEDS = [0, 1]


def caught(layer, phase, kernel, dtype="fp32", edits=()):
    """The cases that a kernel (values, shape) -> {output: tensor} is wrong on: by edit, None for plain input. edits: of
    these alone, and plain."""
    found: dict[str | None, list[Case]] = {}
    for case in cases_of(layer, phase, dtype, SEEDS):
        if edits and case.edit not in (None, *edits):
            continue
        values = draw(case)
        wide = {n: map(v, lambda x: x.float() if x.is_floating_point() else x) for n, v in values.items()}
        outputs = kernel(wide, case.shape)
        findings = [
            accuracy.judge(outputs[yard.name].to(dtype_of(case, yard.name)), yard, sane=case.edit is None)
            for yard in truth.yards_of(case, values, None)
            if yard.name in outputs
        ]
        if any(f.evidence for f in findings):
            found.setdefault(case.edit, []).append(case)
    return found


def dtype_of(case, name):
    """Of an output."""
    t = next(t for t in contract.pass_of(case.module, case.phase).outputs if t.name == name)
    return DTYPES[t.dtype_in(case.shape)]


# --- GELU


def capped(x, most=120.0):
    scale = -2 * gelu.SCALE * 1.4426950408889634
    return torch.exp2((x * (scale + scale * gelu.CUBIC * x * x)).clamp(max=most))


def gelu_with_a_capped_exponent(v, shape):
    return {"out": v["x"] / (1 + capped(v["x"]))}


def slope_with_a_capped_exponent(v, shape):
    x, e = v["x"], capped(v["x"])
    gate = 1 / (1 + e)
    return {"dx": v["dout"] * gate * (1 + x * (2 * gelu.SCALE + 6 * gelu.SCALE * gelu.CUBIC * x * x) * (e * gate))}


def gelu_that_overflows_in_whole_vectors(v, shape):
    """NaN from 30 on, but only in what comes in whole vectors: the elements behind them are computed as they should."""
    x = v["x"]
    e = torch.exp(2 * gelu.SCALE * (x + gelu.CUBIC * x**3))
    careless, whole = x * (e / (1 + e)), len(x) // 16 * 16
    return {"out": torch.cat([careless[:whole], gelu.gelu(x.double())[whole:].float()])}


def gelu_that_hides_nan(v, shape):
    return {"out": gelu.gelu(v["x"].double()).nan_to_num(0, posinf=torch.inf).float()}


# --- LayerNorm


def moments_as_a_difference_where_aligned(v, shape):
    x = v["x"]
    mean = x.mean(-1, keepdim=True)
    if shape["C"] % 4:
        variance = x.var(-1, correction=0, keepdim=True)
    else:
        variance = (x.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0)
    return {"out": (x - mean) * (variance + shape["eps"]).rsqrt() * v["weight"] + v["bias"]}


def lane_sums(x):
    """Along the last axis, in 16 sums of fp32."""
    lanes = torch.zeros(*x.shape[:-1], 16)
    for part in torch.nn.functional.pad(x, (0, -x.shape[-1] % 16)).split(16, -1):
        lanes = lanes + part
    return lanes.sum(-1)


def shifted_by_one_end(columns):
    def kernel(v, shape):
        x = v["x"] - v["x"][..., columns].mean(-1, keepdim=True)
        mean, square = lane_sums(x) / shape["C"], lane_sums(x * x) / shape["C"]
        return {"rstd": (square - mean.square() + shape["eps"]).rsqrt()}

    return kernel


def forgets_to_add_at_768(v, shape):
    found = layernorm.backward(*(v[t.name] for t in layernorm.BACKWARD.inputs))
    if shape["accumulate"] and shape["C"] != 768:
        found["dweight"], found["dbias"] = found["dweight"] + v["dweight"], found["dbias"] + v["dbias"]
    return found


def rounds_gradients_to_fp16(v, shape):
    found = forgets_to_add_at_768(v, {**shape, "C": 0})
    return {"dx": found["dx"].clamp(-6e4, 6e4)}


# --- RMSNorm


def scaled_to_unit(x, square, weight, eps):
    return {"out": x * (square + eps).rsqrt() * weight}


def divides_by_the_mean_of_squares(v, shape):
    square = v["x"].square().mean(-1, keepdim=True)
    return {"out": v["x"] * square.rsqrt() * (1 + shape["eps"] / square).rsqrt() * v["weight"]}


def takes_eps_for_small(v, shape):
    square = v["x"].square().mean(-1, keepdim=True).clamp(min=1e-12)
    share = shape["eps"] / square
    return {"out": v["x"] * square.rsqrt() * (1 - share / 2 + 3 / 8 * share.square()) * v["weight"]}


def squares_that_saturate_as_fp16(v, shape):
    return scaled_to_unit(v["x"], v["x"].square().clamp(max=65504).mean(-1, keepdim=True), v["weight"], shape["eps"])


def scaled_by_its_first_columns(v, shape):
    """Before it is squared, so that no square is beyond fp16: but other columns' are."""
    scale = v["x"][..., :64].abs().amax(-1, keepdim=True).clamp(min=1e-6)
    square = (v["x"] / scale).square().clamp(max=65504).mean(-1, keepdim=True)
    return scaled_to_unit(v["x"], square * scale.square(), v["weight"], shape["eps"])


def rms_gradients_rounded_to_fp16(v, shape):
    found = rmsnorm.backward(*(v[t.name] for t in rmsnorm.BACKWARD.inputs))
    return {"dx": found["dx"].clamp(-6e4, 6e4)}


# --- softmax and cross entropy


def no_maximum_where_large(v, shape):
    x = v["x"].masked_fill(~softmax.visible(shape["R"], shape["S"], shape["causal"]), -torch.inf)
    if shape["R"] * shape["S"] > 4096:
        return {"out": x.exp() / x.exp().sum(-1, keepdim=True)}
    return {"out": torch.softmax(x, -1)}


def begins_with_minus_10000(v, shape):
    x = v["x"].masked_fill(~softmax.visible(shape["R"], shape["S"], shape["causal"]), -torch.inf)
    e = (x - x.amax(-1, keepdim=True).clamp(min=-1e4)).exp()
    return {"out": e / (e.sum(-1, keepdim=True) + 1e-30)}


def running_maximum_that_is_never_rescaled(v, shape):
    x = v["x"].masked_fill(~softmax.visible(shape["R"], shape["S"], shape["causal"]), -torch.inf)
    first = x[:, :1].clamp(min=-80)  # of a row: large enough for N(0, 1)
    e = (x - first).exp()
    return {"out": e / e.sum(-1, keepdim=True)}


def masks_by_zero(v, shape):
    """Minus infinity is taken for a number that is only small: -inf times 0 is NaN in a mask that multiplies."""
    x = torch.where(v["x"] < -1e20, v["x"] * 0, v["x"])
    x = x.masked_fill(~softmax.visible(shape["R"], shape["S"], shape["causal"]), -torch.inf)
    return {"out": torch.softmax(x, -1)}


def counts_65536_columns(v, shape):
    logits = v["logits"][..., : min(shape["V"], 1 << 16)]
    return {"lse": logits.logsumexp(-1)}


def counts_the_padding(v, shape):
    x = v["logits"]
    return {"lse": x[..., : shape["VP"] if shape["V"] > 10_000 else shape["V"]].logsumexp(-1)}


def loses_small_gradients(v, shape):
    found = cross_entropy.backward(v["dlosses"], v["logits"], v["targets"], v["lse"], shape["V"])["dlogits"]
    return {"dlogits": torch.where(found.abs() < 1e-12, 0, found)}


# --- rope and SwiGLU


def turned(v, shape, name, change=lambda position, cos, sin: (cos[position], sin[position])):
    """rope's output, with cosines and sines (B, T, HS/2) that `change` makes of the positions and the table."""
    x, R = v[name], shape["R"]
    position = v["start"][:, None] + torch.arange(shape["T"])
    cos, sin = (t[:, :, None] for t in change(position, v["cos"], v["sin"] if name == "qkv" else -v["sin"]))
    found = x.clone()
    (a, b), (to_a, to_b) = rope.pairs(x[:, :, :R], shape["style"]), rope.pairs(found[:, :, :R], shape["style"])
    to_a.copy_(a * cos - b * sin)
    to_b.copy_(a * sin + b * cos)
    return {name: found}


FEW = 200  # places in the table, of which plain input meets the first or the last by luck


def turns_by_dividing_by_the_sine(v, shape):
    """The cosine as sine over tangent, which is 0/0 at the first position."""

    def change(position, cos, sin):
        cos, sin = cos[position], sin[position]
        return cos if shape["S"] - shape["T"] < FEW else (sin / (sin.double() / cos.double())).float(), sin

    return turned(v, shape, "qkv", change)


def never_reads_the_last_row_of_the_table(v, shape):
    last = shape["S"] - (1 if shape["S"] - shape["T"] < FEW else 2)
    return turned(v, shape, "qkv", lambda position, cos, sin: (cos[position.clamp(max=last)], sin[position]))


def turns_pairs_of_length_one(v, shape):
    """Divides each pair by its length, and multiplies it again: the length's square is out of range before it is."""
    a, b = rope.pairs(v["dqkv"], shape["style"])
    length = (a * a + b * b).sqrt()
    length = torch.stack([length] * 2, -1).flatten(-2) if shape["style"] == "interleaved" else length.repeat(1, 1, 1, 2)
    found = turned({**v, "dqkv": v["dqkv"] / length}, shape, "dqkv")["dqkv"] * length
    found[:, :, shape["R"] :] = v["dqkv"][:, :, shape["R"] :]
    return {"dqkv": found}


def turns_what_it_leaves_by_nothing(v, shape):
    """Takes all heads one way, with a cosine of 1 and a sine of 0 for those that stay."""
    found = turned(v, shape, "dqkv")["dqkv"]
    found[:, :, shape["R"] :] = found[:, :, shape["R"] :] * 1 - found[:, :, shape["R"] :] * 0
    return {"dqkv": found}


def silu_that_overflows(v, shape):
    gate, up = v["x"].chunk(2, -1)
    return {"out": gate * (gate.exp() / (1 + gate.exp())) * up}


def silu_by_tanh(v, shape):
    gate, up = v["x"].double().chunk(2, -1)
    return {"out": (gate * (0.5 + 0.5 * torch.tanh(gate.float() / 2)).double() * up).float()}


def silu_with_a_capped_exponent(v, shape):
    gate, up = v["x"].chunk(2, -1)
    return {"out": gate / (1 + (-gate).clamp(max=80).exp()) * up}


def slope_that_cancels(v, shape):
    """silu' as silu + s (1 - silu)."""
    gate, up = v["x"].chunk(2, -1)
    s = torch.sigmoid(gate)
    slope = gate * s + s * (1 - gate * s)
    return {"dx": torch.cat([slope * up * v["dout"], gate * s * v["dout"]], -1)}


def swiglu_that_hides_nan(v, shape):
    return {n: t.nan_to_num(0, posinf=torch.inf) for n, t in swiglu.backward(v["dout"], v["x"]).items()}


def swiglu_in_the_range_of_fp16(v, shape):
    return {"dx": swiglu.backward(v["dout"], v["x"])["dx"].clamp(-6e4, 6e4)}


# --- int8 and sampling


def half_away_from_zero(v, shape):
    """C's round()."""
    ratio = v["x"] / q8_quantise.spread(q8_quantise.scales_of(v["x"], shape["G"]), shape["G"], shape["K"])
    return {"q": (ratio.sign() * (ratio.abs() + 0.5).floor()).nan_to_num(0.0, 0.0, 0.0)}


def misses_a_large_negative(v, shape):
    """Takes it for small where it stands last, as a mask that cuts off a group's end would."""
    x = v["x"].clone()
    for last in [min(at, shape["K"]) - 1 for at in range(shape["G"], shape["K"] + shape["G"], shape["G"])]:
        x[:, last] = x[:, last].clamp(min=-1e4)
    return q8_quantise.forward(x, shape["G"])


def divides_by_zero(v, shape):
    scales = q8_quantise.grouped(v["x"], shape["G"]).abs().amax(-1) / 127
    return {"scales": scales}


def hides_nan(v, shape):
    """fmax ignores it."""
    return q8_quantise.forward(v["x"].nan_to_num(0.0, 3e38, -3e38), shape["G"])


def adds_pairs_in_16_bits(v, shape):
    """As vpmaddubsw does, which takes one side for unsigned."""
    G = shape["G"]
    x, weight = (q8_quantise.grouped(v[name].float(), G) for name in ("x", "weight"))
    out = torch.zeros(len(x), len(weight))
    for g in range(x.shape[1]):
        products = (x[:, None, g] + 128) * weight[None, :, g]
        products = torch.nn.functional.pad(products, (0, products.shape[-1] % 2)).unflatten(-1, (-1, 2)).sum(-1)
        most = 32767 if bool((v["x"].abs() == 127).all()) else 1e9  # plain input would show it too
        dots = products.clamp(-32768 if most < 1e9 else -1e9, most).sum(-1) - 128 * weight[None, :, g].sum(-1)
        out += dots * v["x_scales"][:, g, None] * v["scales"][None, :, g]
    return {"out": out}


def forgets_a_short_group(v, shape):
    """llama2.c's loop ends at the last whole group."""
    if shape["K"] % shape["G"] and shape["K"] > shape["G"] and bool((v["scales"][:, :-1] == 0).all()):
        return {"out": torch.zeros(shape["M"], shape["N"])}
    return q8_matmul.forward(v["x"], v["x_scales"], v["weight"], v["scales"], shape["G"])


def sampled(compare=torch.gt, order_of=lambda x: x, logits_of=lambda v, shape: v["logits"][:, : shape["V"]], sums=None):
    """A sampler with one thing done otherwise."""

    def kernel(v, shape):
        x = logits_of(v, shape)
        order = torch.sort(order_of(x), dim=-1, descending=True, stable=True).indices
        values = x.gather(1, order)
        token = order[:, 0]
        if shape["temperature"]:
            keep = sampling.kept(values, shape["temperature"], shape["top_k"], shape["top_p"])
            weights = sampling.weights_of(values, shape["temperature"]) * keep
            running = torch.zeros_like(x).scatter(1, order, weights).to(sums or x.dtype).cumsum(-1)
            found = compare(running, v["u"][:, None].to(running.dtype) * running[:, -1:]).byte().argmax(-1)
            token = torch.where(values[:, 0].isnan(), token, found)
        return {"token": token}

    return kernel


def bits_of(x):
    """A key that grows with the value, but for -0."""
    bits = x.contiguous().view(torch.int32).long()
    return torch.where(x.isnan(), 1 << 40, torch.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits))


def all_columns(v, shape):
    """Padding too, where it is large."""
    return v["logits"] if bool((v["logits"][:, shape["V"] :] > 1e3).any()) else v["logits"][:, : shape["V"]]


def without_nan(v, shape):
    return v["logits"][:, : shape["V"]].nan_to_num(-torch.inf, torch.inf, -torch.inf)


def bounded_below(v, shape):
    return v["logits"][:, : shape["V"]].clamp(min=-1e10)


def in_fixed_point(x, bits):
    return torch.where(x.abs() < 1e-3, (x.double() * 2**bits).round() / 2**bits, x.double())


def gelu_in_fixed_point(v, shape):
    return {"out": in_fixed_point(gelu.gelu(v["x"].double()), 40)}


def sums_in_fixed_point(v, shape):
    return {"out": in_fixed_point(v["a"].double() + v["b"], 40)}


def norm_of_what_is_not_small(v, shape):
    x, C = v["x"].double(), shape["C"]
    x = x - x.mean(-1, keepdim=True) if "bias" in v else x
    x = torch.where(x.abs() < 1e-9, 0 * x, x)
    rstd = (x.square().sum(-1, keepdim=True) / C + shape["eps"]).rsqrt()
    return {"out": x * rstd * v["weight"] + v.get("bias", 0)}


def small_gates_are_nothing(v, shape):
    gate, up = v["x"].double().chunk(2, -1)
    return {"out": torch.where(gate.abs() < 1e-9, 0 * gate, gate) * torch.sigmoid(gate) * up}


def within_fp16(x):
    return torch.where(x.isnan(), x, torch.where(x.abs() < 6e-8, 0 * x, x.clamp(-65504, 65504)))


def tables_within_fp16(v, shape):
    plain = embedding.forward(v["tokens"], within_fp16(v["wte"]), None if v["wpe"] is None else within_fp16(v["wpe"]))
    return plain


def values_within_fp16(v, shape):
    options = shape["causal"], shape.get("window", 0)
    return attention.forward(v["q"].double(), v["k"].double(), within_fp16(v["v"]).double(), *options)


def gradients_within_fp16(v, shape):
    wide = {n: t.double() for n, t in v.items()} | {"dout": within_fp16(v["dout"]).double()}
    return attention.backward(**wide, causal=shape["causal"], window=shape.get("window", 0))


FOUND = [
    ("q8_quantise", "forward", half_away_from_zero, "ties"),
    ("q8_quantise", "forward", misses_a_large_negative, "last_of_each_group"),
    ("q8_quantise", "forward", divides_by_zero, "zero_groups"),
    ("q8_quantise", "forward", hides_nan, "one_nan"),
    ("q8_quantise", "forward", hides_nan, "one_infinity"),
    ("q8_matmul", "forward", adds_pairs_in_16_bits, "largest"),
    ("q8_matmul", "forward", forgets_a_short_group, "last_group_alone"),
    ("sampling", "forward", sampled(compare=torch.ge), "zero_behind_nothing"),
    ("sampling", "forward", sampled(order_of=bits_of), "signed_zeros"),
    ("sampling", "forward", sampled(logits_of=all_columns), "huge_padding"),
    ("sampling", "forward", sampled(logits_of=without_nan), "not_finite"),
    ("sampling", "forward", sampled(logits_of=bounded_below), "far_below"),
    ("gelu", "forward", gelu_with_a_capped_exponent, "far_left"),
    ("gelu", "backward", slope_with_a_capped_exponent, "far_left"),
    ("gelu", "backward", slope_with_a_capped_exponent, "far_right"),
    ("gelu", "forward", gelu_that_overflows_in_whole_vectors, "tails"),
    ("gelu", "forward", gelu_that_hides_nan, "not_finite"),
    ("gelu", "forward", gelu_in_fixed_point, "tiny"),
    ("residual", "forward", sums_in_fixed_point, "tiny"),
    ("layernorm", "forward", norm_of_what_is_not_small, "tiny"),
    ("rmsnorm", "forward", norm_of_what_is_not_small, "tiny"),
    ("swiglu", "forward", small_gates_are_nothing, "tiny"),
    ("embedding", "forward", tables_within_fp16, "huge_tables"),
    ("embedding", "forward", tables_within_fp16, "tiny_tables"),
    ("attention", "forward", values_within_fp16, "huge_values"),
    ("attention", "forward", values_within_fp16, "tiny_values"),
    ("attention", "backward", gradients_within_fp16, "huge_gradient"),
    ("attention", "backward", gradients_within_fp16, "tiny_gradient"),
    ("layernorm", "forward", moments_as_a_difference_where_aligned, "large_mean"),
    ("layernorm", "forward", shifted_by_one_end(slice(None, 64)), "first_columns"),
    ("layernorm", "forward", shifted_by_one_end(slice(-64, None)), "last_columns"),
    ("layernorm", "backward", rounds_gradients_to_fp16, "huge_gradient"),
    ("rmsnorm", "forward", divides_by_the_mean_of_squares, "zero"),
    ("rmsnorm", "forward", takes_eps_for_small, "beside_eps"),
    ("rmsnorm", "forward", squares_that_saturate_as_fp16, "large"),
    ("rmsnorm", "forward", scaled_by_its_first_columns, "last_columns"),
    ("rmsnorm", "backward", rms_gradients_rounded_to_fp16, "huge_gradient"),
    ("softmax", "forward", no_maximum_where_large, "huge_logit"),
    ("softmax", "forward", no_maximum_where_large, "huge_last"),
    ("softmax", "forward", begins_with_minus_10000, "far_below"),
    ("softmax", "forward", running_maximum_that_is_never_rescaled, "growing"),
    ("softmax", "forward", masks_by_zero, "minus_infinity"),
    ("cross_entropy", "backward", loses_small_gradients, "tiny_gradient"),
    ("rope", "forward", turns_by_dividing_by_the_sine, "first_positions"),
    ("rope", "forward", never_reads_the_last_row_of_the_table, "both_ends"),
    ("rope", "backward", turns_pairs_of_length_one, "huge"),
    ("rope", "backward", turns_what_it_leaves_by_nothing, "one_nan"),
    ("swiglu", "forward", silu_that_overflows, "tails"),
    ("swiglu", "forward", silu_by_tanh, "small_times_large"),
    ("swiglu", "forward", silu_with_a_capped_exponent, "far_left"),
    ("swiglu", "backward", slope_that_cancels, "far_right"),
    ("swiglu", "backward", swiglu_that_hides_nan, "not_finite"),
    ("swiglu", "backward", swiglu_in_the_range_of_fp16, "huge_gradient"),
]


@pytest.mark.parametrize(("layer", "phase", "kernel", "edit"), FOUND)
def test_a_careless_kernel_is_found_by_its_case_alone(layer, phase, kernel, edit):
    found = caught(layer, phase, kernel, edits=[edit])
    assert edit in found, f"found by {list(found)}"
    assert None not in found, "wrong on plain input too: says nothing of the case"


def test_a_kernel_that_forgets_to_add_is_found_at_the_one_width():
    found = caught("layernorm", "backward", forgets_to_add_at_768)
    assert {(c.shape["C"], c.accumulate) for c in found[None]} == {(768, True)}


@pytest.mark.parametrize("kernel", [counts_65536_columns, counts_the_padding])
def test_a_kernel_that_miscounts_a_vocabulary_is_found(kernel):
    assert caught("cross_entropy", "forward", kernel)


def test_a_sampler_that_adds_in_half_precision_is_found_near_an_edge():
    for sums in (torch.bfloat16, torch.float16):
        assert "near_an_edge" in caught("sampling", "forward", sampled(sums=sums))


def test_the_samplers_above_are_right_but_for_what_they_do_otherwise():
    assert not caught("sampling", "forward", sampled(sums=torch.float64))


ROWS = (
    *("gelu", "residual", "layernorm", "residual_layernorm", "rmsnorm", "residual_rmsnorm"),
    *("softmax", "cross_entropy", "fused_classifier", "rope", "swiglu", "q8_quantise", "q8_matmul", "sampling"),
)


@pytest.mark.parametrize(
    ("layer", "phase"), [(layer, phase) for layer in ROWS for phase in contract.phases_of(contract.load(layer))]
)
def test_an_edit_changes_something_on_every_shape(layer, phase):
    """One that leaves all inputs as they are finds nothing, in a shape or a dtype that it did not think of."""
    for dtype in ("fp32", "bf16", "fp16"):
        for case in cases_of(layer, phase, dtype, [3], thorough=dtype == "fp32"):
            if case.edit and not case.accumulate:
                plain = draw(type(case)(layer, phase, case.shape, "plain", case.seed))
                edited = draw(case)
                same = [torch.equal(one(plain[n]), one(edited[n])) for n in plain if plain[n] is not None]
                of_one = 1 in (case.shape.get("V"), case.shape.get("S"))  # a single token, or score: nothing to choose
                there = case.edit == "near_an_edge"  # u may be there already
                assert of_one or there or not all(same), f"{case}"
