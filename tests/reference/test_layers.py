"""Each layer's truth against PyTorch's own operators and against autograd, in fp64, on all ragged shapes and cases."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bench.core.case import Case, draw
from reference import contract, gelu, matmul

LAYERS = contract.layer_names()
WITH_BACKWARD = [layer for layer in LAYERS if contract.load(layer).BACKWARD is not None]


def cases(layers, phases=("forward",)):
    """Every ragged shape as it is, and on each the structured cases that say something about these phases."""
    found = []
    for layer in layers:
        module = contract.load(layer)
        for i, shape in enumerate(module.RAGGED):
            shape = {**shape, "dtype": "fp64"}
            told = [contract.edits_of(module, phase, shape) for phase in phases]
            for edit in (None, *(e for e in told[0] if all(e in edits for edits in told))):
                case = Case(layer, "forward", shape, f"ragged {i}", seed=i, edit=edit)
                found.append(pytest.param(case, id=f"{layer}-{i}-{edit or 'random'}"))
    return found


def inputs(case):
    """Forward's inputs, all floating-point ones in fp64."""
    return {name: wide(value) for name, value in draw(case).items()}


def wide(value):
    if isinstance(value, list):
        return [wide(v) for v in value]
    return value.double() if value is not None and value.is_floating_point() else value


def run(case, values):
    module, p = case.module, case.module.FORWARD
    args = [values[t.name] for t in p.inputs] + p.scalars_in(case.shape)
    return module.forward(*args, **{t.name: values[t.name] for t in p.outputs if t.inplace})


def close(found, expected, what):
    finite = expected[expected.isfinite()]
    scale = max(1.0, finite.abs().max().item() if len(finite) else 0)
    torch.testing.assert_close(
        found, expected, rtol=1e-9, atol=1e-11 * scale, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


# --- forward against torch's operators


def torch_forward(case, x):
    """The same layer by the operator that PyTorch's users call: {output: tensor}."""
    s = case.shape
    match case.layer:
        case "embedding":
            out = F.embedding(x["tokens"], x["wte"])
            return {"out": out if x["wpe"] is None else out + x["wpe"]}
        case "layernorm":
            return {"out": F.layer_norm(x["x"], (s["C"],), x["weight"], x["bias"], s["eps"])}
        case "residual_layernorm":
            residual = x["x"] + x["residual"]
            out = F.layer_norm(residual, (s["C"],), x["weight"], x["bias"], s["eps"])
            return {"residual_out": residual, "out": out}
        case "rmsnorm":
            return {"out": F.rms_norm(x["x"], (s["C"],), x["weight"], s["eps"])}
        case "residual_rmsnorm":
            residual = x["x"] + x["residual"]
            return {"residual_out": residual, "out": F.rms_norm(residual, (s["C"],), x["weight"], s["eps"])}
        case "matmul":
            out = F.linear(x["x"], x["weight"], x["bias"])
            with_gelu = s["epilogue"] == "bias_gelu"
            return {"pre_gelu": out, "out": F.gelu(out, approximate="tanh")} if with_gelu else {"out": out}
        case "attention":
            q, k, v = (x[name].transpose(1, 2) for name in ("q", "k", "v"))
            kind: dict[str, Any] = dict(is_causal=s["causal"])
            if window := s.get("window"):
                place = torch.arange(s["T"])
                behind = place.view(-1, 1) - place
                kind = dict(attn_mask=(behind >= 0) & (behind < window))
            out = F.scaled_dot_product_attention(q, k, v, **kind, enable_gqa=s["NH"] != s["NKV"])
            return {"out": out.transpose(1, 2)}
        case "gemv":
            return {"out": F.linear(x["x"], x["weight"])}
        case "decode_attention":
            return decoded_one_by_one(s, x)
        case "gelu":
            return {"out": F.gelu(x["x"], approximate="tanh")}
        case "residual":
            return {"out": torch.add(x["a"], x["b"])}
        case "softmax":
            scores = x["x"]
            if s["causal"]:  # each group of S rows is one square of scores, the last one perhaps not whole
                hidden = torch.ones(s["S"], s["S"]).triu(1).bool().repeat(-(-s["R"] // s["S"]), 1)
                scores = scores.masked_fill(hidden[: s["R"]], -torch.inf)
            return {"out": torch.softmax(scores, -1)}
        case "cross_entropy":
            logits = x["logits"][..., : s["V"]]
            return {"losses": losses_of(logits, x["targets"]), "lse": torch.logsumexp(logits, -1)}
        case "fused_classifier":
            logits = x["logits"].clone().requires_grad_()
            losses = losses_of(logits[..., : s["V"]], x["targets"])
            (grad,) = torch.autograd.grad((losses * x["dlosses"]).sum(), logits)
            return {"losses": losses.detach(), "logits": grad}
        case "rope":
            return {"qkv": torch.cat([turned(x, s), x["qkv"][:, :, s["R"] :]], 2)}
        case "swiglu":
            gate, up = x["x"].chunk(2, -1)
            return {"out": F.silu(gate) * up}
        case "q8_quantise":
            return quantised(x["x"], s["G"])
        case "q8_matmul":
            a, b = (
                x[values].double() * x[scales].repeat_interleave(s["G"], -1)[:, : s["K"]]
                for values, scales in (("x", "x_scales"), ("weight", "scales"))
            )
            return {"out": F.linear(a, b)}
        case "sampling":
            rows = (row_sampled(logits[: s["V"]], u, s) for logits, u in zip(x["logits"], x["u"], strict=True))
            return {"token": torch.stack(list(rows))}
        case "global_norm":
            return {"norm": torch.nn.utils.get_total_norm(x["grads"])}
    raise AssertionError(f"{case.layer}: add a case to torch_forward, the operator of PyTorch that computes it")


def decoded_one_by_one(s, x):
    """Every sequence, and each of its new tokens, by itself, against as many keys as there are by then."""
    out = torch.empty(s["B"], s["T"], s["NH"], s["HS"], dtype=x["qkv"].dtype)
    k_cache, v_cache = x["k_cache"].clone(), x["v_cache"].clone()
    q, k, v = x["qkv"].split([s["NH"], s["NKV"], s["NKV"]], dim=2)
    for b, length in enumerate(x["lengths"].tolist()):
        for t in range(s["T"]):
            end = length + t + 1
            k_cache[b, :, end - 1], v_cache[b, :, end - 1] = k[b, t], v[b, t]
            keys, values = k_cache[b, :, :end], v_cache[b, :, :end]
            out[b, t] = F.scaled_dot_product_attention(q[b, t][:, None], keys, values, enable_gqa=True)[:, 0]
    return {"out": out, "k_cache": k_cache, "v_cache": v_cache}


def quantised(x, G):
    """Group by group, by torch's own quantised tensors where there is a scale."""
    q, scales = torch.zeros_like(x, dtype=torch.int8), []
    for start in range(0, x.shape[1], G):
        group = x[:, start : start + G]
        scale = torch.linalg.vector_norm(group, torch.inf, dim=-1) / 127
        fit = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
        finite = torch.where(scale.isfinite()[:, None], group, 0.0) / fit[:, None]
        whole = torch.quantize_per_tensor(finite.float(), 1.0, 0, torch.qint8)
        q[:, start : start + G] = whole.int_repr()
        scales.append(torch.where(scale == 0, 1.0, scale).masked_fill(~scale.isfinite(), torch.nan))
    return {"q": q, "scales": torch.stack(scales, -1)}


def row_sampled(logits, u, s):
    """By softmax and searchsorted, as of a row alone; equal ones of what is not finite are as likely."""
    if s["temperature"] == 0 or logits.isnan().any():
        return logits.argmax()
    scaled = logits / s["temperature"]
    if logits.max().isinf():
        scaled = torch.where(logits == logits.max(), 0.0, -torch.inf)
    order = scaled.argsort(descending=True, stable=True)[: s["top_k"] or None]
    before = scaled[order].softmax(0).cumsum(0) - scaled[order].softmax(0)
    if s["top_p"] < 1:
        order = order[: max(1, int((before < s["top_p"]).sum()))]
    kept = order.sort().values
    upto = scaled[kept].softmax(0).cumsum(0)
    return kept[torch.searchsorted(upto, u.to(upto.dtype) * upto[-1], right=True)]


def losses_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def turned(x, s):
    """rope's heads as Llama 2's own code turns them, by complex numbers, or as Hugging Face's, by halves."""
    position = x["start"][:, None] + torch.arange(s["T"])
    cos, sin, heads = x["cos"][position][:, :, None], x["sin"][position][:, :, None], x["qkv"][:, :, : s["R"]]
    if s["style"] == "interleaved":
        product = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)
        return torch.view_as_real(product).flatten(-2)
    first, second = heads.chunk(2, -1)
    return heads * torch.cat([cos, cos], -1) + torch.cat([-second, first], -1) * torch.cat([sin, sin], -1)


@pytest.mark.parametrize("case", cases([layer for layer in LAYERS if layer != "adamw"]))
def test_forward_equals_torch(case):
    values = inputs(case)
    expected = torch_forward(case, values)
    found = run(case, values)
    for name, tensor in expected.items():
        close(found[name], tensor, f"{case}: {name}")
    if case.layer == "fused_classifier":
        assert not found["logits"][..., case.shape["V"] :].any(), "padding columns become 0"


def test_layernorm_statistics():
    x = torch.randn(2, 3, 50, dtype=torch.float64) * 3 + 7
    found = contract.load("layernorm").forward(x, torch.ones(50), torch.zeros(50), 1e-5)
    close(found["mean"], x.mean(-1), "mean")
    close(found["rstd"], (x.var(-1, correction=0) + 1e-5) ** -0.5, "rstd")


def test_rmsnorm_statistics():
    x = torch.randn(2, 3, 50, dtype=torch.float64) * 3 + 7
    found = contract.load("rmsnorm").forward(x, torch.ones(50), 1e-5)
    close(found["rstd"], (x.var(-1, correction=0) + x.mean(-1) ** 2 + 1e-5) ** -0.5, "rstd")


def test_attention_lse():
    q, k = torch.randn(2, 1, 5, 2, 8, dtype=torch.float64)
    found = contract.load("attention").forward(q, k, k, True)["lse"]
    for head in range(2):
        for t in range(5):
            scores = q[0, t, head] @ k[0, : t + 1, head].T / 8**0.5
            close(found[0, head, t], scores.exp().sum().log(), "lse")


@pytest.mark.parametrize("window", [5, 6, 100])
def test_a_window_that_hides_nothing_is_none(window):
    attention = contract.load("attention")
    q, k = torch.randn(2, 1, 5, 2, 8, dtype=torch.float64)
    assert torch.equal(attention.forward(q, k, k, True, window)["out"], attention.forward(q, k, k, True)["out"])
    narrower = attention.forward(q, k, k, True, 4)["out"]
    assert not torch.equal(narrower, attention.forward(q, k, k, True)["out"])


@pytest.mark.parametrize(("causal", "window"), [(False, 3), (True, -1)])
def test_a_window_that_is_none(causal, window):
    q, k = torch.randn(2, 1, 5, 2, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="window"):
        contract.load("attention").forward(q, k, k, causal, window)


# --- backward against autograd


def forward_for_autograd(case, leaves):
    """Outputs by the names that BACKWARD's d<name> inputs refer to."""
    if case.layer == "matmul":
        # dout is the gradient before GELU; where x was gelu(x_pre_gelu), dx is the gradient of x_pre_gelu.
        x = gelu.gelu(leaves["x"]) if case.shape["dgelu"] else leaves["x"]
        bias = leaves["bias"]
        results = matmul.forward(x, leaves["weight"], bias, "none" if bias is None else "bias")
        return {**results, "x": x.detach(), "x_pre_gelu": leaves["x"].detach() if case.shape["dgelu"] else None}
    results = run(case, leaves)
    if case.layer in ("layernorm", "rmsnorm") and case.shape["dresidual"]:
        results["residual"] = leaves["x"]  # x also goes on along the residual stream
    return results


@pytest.mark.parametrize("case", cases(WITH_BACKWARD, contract.PHASES))
def test_backward_equals_autograd(case):
    if case.edit in ("far_below", "far_above"):
        pytest.skip("scores of 1e30 are forward's alone: lse would have to be exact")
    if case.edit == "huge_values":
        pytest.skip("of gradients of 1e20 one that is 0 is off by more than any small number")
    p, shape = case.module.BACKWARD, case.shape
    leaves = inputs(case)
    for value in leaves.values():
        if value is not None and value.is_floating_point():
            value.requires_grad_()
    results = forward_for_autograd(case, leaves)

    generator = torch.Generator().manual_seed(99)
    known = {name: None if v is None else v.detach() for name, v in {**leaves, **results}.items()}
    total = torch.zeros((), dtype=torch.float64)
    inplace = [t for t in p.outputs if t.inplace]  # gradients that are changed into others
    for t in (*p.inputs, *inplace):
        output = t.name.removeprefix("d")
        if t.name.startswith("d") and t.when(shape):
            known[t.name] = torch.randn(results[output].shape, generator=generator, dtype=torch.float64)
            total = total + (results[output] * known[t.name]).sum()
        elif not t.when(shape):
            known[t.name] = None
    total.backward()

    args = [*(known[t.name] for t in p.inputs), *p.scalars_in(shape)]
    found = case.module.backward(*args, **{t.name: known[t.name] for t in inplace})
    for t in p.outputs:
        if not t.when(shape):
            continue
        leaf = leaves[t.name.removeprefix("d")]
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        close(found[t.name], expected, f"{case}: {t.name}")
    if case.layer in ("residual_layernorm", "residual_rmsnorm"):
        close(leaves["x"].grad, leaves["residual"].grad, "addition passes one gradient to both")


@pytest.mark.parametrize("layer", WITH_BACKWARD)
def test_some_gradient_is_not_zero(layer):
    """The comparison above would also hold between zeros."""
    module = contract.load(layer)
    shape = {**module.RAGGED[0], "dtype": "fp64"}
    values = draw(Case(layer, "backward", shape, "ragged 0"))
    args = [wide(values[t.name]) for t in module.BACKWARD.inputs] + [shape[s] for s in module.BACKWARD.scalars]
    inplace = {t.name: wide(values[t.name]) for t in module.BACKWARD.outputs if t.inplace}
    for name, grad in module.backward(*args, **inplace).items():
        assert grad.abs().max() > 0, name


# --- the optimizer


@pytest.mark.parametrize("shape", range(len(contract.load("adamw").RAGGED)))
def test_adamw_equals_torch_over_several_steps(shape):
    adamw = contract.load("adamw")
    shape = adamw.RAGGED[shape]
    generator = torch.Generator().manual_seed(5)

    def random():
        return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shape["tensors"]]

    params, scale = random(), torch.tensor(0.25, dtype=torch.float64)
    m, v = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    theirs = [p.clone().requires_grad_() for p in params]
    groups = [dict(params=[p], weight_decay=decay) for p, decay in zip(theirs, shape["weight_decays"], strict=True)]
    betas = (shape["beta1"], shape["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=shape["eps"])
    for step in range(1, 6):
        lr, grads = 1e-2 * step, random()
        for group in optimizer.param_groups:
            group["lr"] = lr
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g * scale
        optimizer.step()
        hyper = [shape[name] for name in adamw.FORWARD.scalars]
        step_and_lr = (torch.tensor(float(x), dtype=torch.float64) for x in (step, lr))
        new = adamw.forward(grads, *step_and_lr, scale, *hyper, params=params, m=m, v=v, masters=None)
        params, m, v = new["params"], new["m"], new["v"]
        for found, expected in zip(params, theirs, strict=True):
            close(found, expected.detach(), f"step {step}")


def test_adamw_updates_the_master_and_the_parameter_follows():
    adamw = contract.load("adamw")
    one = torch.ones((), dtype=torch.float64)
    master, param = torch.tensor([1.0]).double(), torch.tensor([50.0]).double()
    state = dict(m=[torch.zeros(1).double()], v=[torch.zeros(1).double()])
    new = adamw.forward(
        [one.view(1)], one, 0.1 * one, one, 0.9, 0.95, 0.0, [0.0], params=[param], masters=[master], **state
    )
    # the first step of Adam is lr times the gradient's sign
    assert new["masters"][0].item() == pytest.approx(0.9)
    assert new["params"][0].item() == pytest.approx(0.9)
