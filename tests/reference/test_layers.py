"""The truth is true: every backward against autograd of its forward, and the counts against formulas by hand."""

import math

import pytest
import torch

from bench import tensors
from bench.tensors import Case
from reference import contract
from reference.models import MODELS

LAYERS = [name for name in contract.layer_names() if contract.load(name).BACKWARD is not None]


def cases(layer: str) -> list[Case]:
    module = contract.load(layer)
    shapes = [{**s, "dtype": "fp64"} for s in module.RAGGED]
    plain = [Case(layer, "backward", s, f"ragged {i}", i) for i, s in enumerate(shapes)]
    return plain + [Case(layer, "backward", shapes[0], edit, 0, edit) for edit in module.CASES]


# Which gradient of the backward belongs to which input of the forward, where the name does not say so.
GRADIENT_OF = {"dresidual": "residual"}


def leaf_of(layer: str, name: str) -> str:
    if layer == "residual_layernorm":
        return GRADIENT_OF.get(name, name[1:])
    return name[1:]


@pytest.mark.parametrize("layer", LAYERS)
def test_backward_is_the_derivative_of_forward(layer):
    module = contract.load(layer)
    for case in cases(layer):
        forward_case = Case(layer, "forward", case.shape, case.name, case.seed, case.edit)
        inputs = tensors.draw(forward_case)
        leaves = {
            n: v.double().clone().requires_grad_() if v is not None and v.is_floating_point() else v
            for n, v in inputs.items()
        }
        scalars = [case.shape[s] for s in module.FORWARD.scalars]
        outputs = module.forward(*[leaves[t.name] for t in module.FORWARD.inputs], *scalars)
        given = tensors.draw(case) | {n: v.detach() for n, v in outputs.items()} | inputs
        total = sum(
            (outputs[t.name[1:]] * given[t.name].double()).sum()
            for t in module.BACKWARD.inputs
            if t.name.startswith("d") and t.when(case.shape) and t.name[1:] in outputs and t.name != "dresidual"
        )
        if layer == "matmul":
            # dout is the gradient before the GELU, and dx the gradient before the GELU that made x.
            before = outputs.get("pre_gelu", outputs["out"])
            total = (before * given["dout"]).sum()
        names = {t.name: leaf_of(layer, t.name) for t in module.BACKWARD.outputs if t.when(case.shape)}
        grads = torch.autograd.grad(total, [leaves[leaf] for leaf in names.values()])
        backward_inputs = [given.get(t.name) if t.when(case.shape) else None for t in module.BACKWARD.inputs]
        found = module.backward(*backward_inputs, *[case.shape[s] for s in module.BACKWARD.scalars])
        for (name, _), grad in zip(names.items(), grads, strict=True):
            if layer == "matmul" and name == "dx" and case.shape["dgelu"]:
                grad = grad * autograd_gelu(given["x_pre_gelu"])
            if name == "dx" and layer == "layernorm" and case.shape["dresidual"]:
                grad = grad + given["dresidual"]
            scale = max(1.0, float(grad.abs().max()))
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-10 * scale, msg=f"{case}: {name}")


def autograd_gelu(x: torch.Tensor) -> torch.Tensor:
    x = x.double().clone().requires_grad_()
    torch.nn.functional.gelu(x, approximate="tanh").sum().backward()
    return x.grad


def test_gelu_is_torchs_tanh_gelu():
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(contract.load("gelu").forward(x)["out"], expected)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_sdpa(causal):
    shape = {**contract.load("attention").RAGGED[2], "causal": causal, "dtype": "fp64"}
    v = tensors.draw(Case("attention", "forward", shape, "test"))
    heads = [v[n].transpose(1, 2) for n in "qkv"]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=causal, enable_gqa=True)
    found = contract.load("attention").forward(v["q"], v["k"], v["v"], causal)
    torch.testing.assert_close(found["out"], expected.transpose(1, 2))


def test_cross_entropy_is_torchs_on_the_real_columns_and_fused_is_both_passes():
    shape = {**contract.load("fused_classifier").RAGGED[3], "dtype": "fp64"}
    v = tensors.draw(Case("fused_classifier", "forward", shape, "test"))
    logits = v["logits"].clone().requires_grad_()
    losses = torch.nn.functional.cross_entropy(
        logits[..., : shape["V"]].flatten(0, 1), v["targets"].flatten(), reduction="none"
    )
    losses.mean().backward()
    found = contract.load("fused_classifier").forward(v["targets"], v["dlosses"].double(), shape["V"], v["logits"])
    torch.testing.assert_close(found["losses"].flatten(), losses.detach())
    torch.testing.assert_close(found["logits"], logits.grad, rtol=1e-6, atol=1e-9)  # dlosses are fp32
    assert (found["logits"][..., shape["V"] :] == 0).all()


def test_adamw_is_torch_optim_adamw():
    module = contract.load("adamw")
    shape = {**module.RAGGED[0], "dtype": "fp64", **module.HYPER}
    gen = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=gen, dtype=torch.float64) for s in shape["tensors"]]
    m, v = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
    leaves = [p.clone().requires_grad_() for p in params]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(leaves, shape["weight_decays"], strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    scale = torch.tensor(0.5, dtype=torch.float64)
    for step in range(1, 5):
        grads = [torch.randn(s, generator=gen, dtype=torch.float64) for s in shape["tensors"]]
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad * scale
        optimizer.step()
        now = [torch.tensor(x, dtype=torch.float64) for x in (step, 1e-2)]
        scalars = [shape[s] for s in module.FORWARD.scalars]
        new = module.forward(grads, *now, scale, *scalars, params=params, m=m, v=v, masters=None)
        params, m, v = new["params"], new["m"], new["v"]
        for p, leaf in zip(params, leaves, strict=True):
            torch.testing.assert_close(p, leaf.detach(), rtol=1e-12, atol=1e-12)


def test_global_norm_is_torchs():
    grads = [torch.randn(s, dtype=torch.float64) for s in [(3, 5), (7,), (1,)]]
    expected = torch.nn.utils.get_total_norm(grads)
    torch.testing.assert_close(contract.load("global_norm").forward(grads)["norm"], expected)


def test_parameter_counts():
    # llm.c, padded vocabulary: 124,475,904 for d12, 354,871,296 for d24, 774,090,240 and 1,557,686,400.
    counts = {name: model.parameters for name, model in MODELS.items()}
    assert counts["gpt2-124m"] == 124_475_904 and counts["gpt2-350m"] == 354_871_296
    assert counts["gpt2-774m"] == 774_090_240 and counts["gpt2-1558m"] == 1_557_686_400
    assert all(model.vp % 128 == 0 and 0 <= model.vp - model.v < 128 for model in MODELS.values())


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
def test_matmul_flops_of_a_step_are_six_per_weight_and_token(model):
    B, T = 2, min(64, model.max_t)
    matmul = contract.load("matmul")
    total = sum(
        call.calls * (matmul.flops(call.shape, "forward") + matmul.flops(call.shape, "backward"))
        for call in matmul.shapes(model, B, T).values()
    )
    weights = model.L * 12 * model.C**2 + model.vp * model.C
    assert total == 6 * weights * B * T


def test_causal_attention_counts_half():
    attention = contract.load("attention")
    shape = attention.shapes(MODELS["gpt2-124m"], 1, 1024)[""].shape
    full = attention.flops({**shape, "causal": False}, "forward")
    assert full == 4 * 12 * 1024 * 1024 * 64
    assert attention.flops(shape, "forward") == full * 1025 // 2048
    assert attention.flops(shape, "backward") * 2 == 5 * attention.flops(shape, "forward")


def test_bytes_are_each_input_once_and_each_output_once():
    residual = contract.load("residual")
    assert contract.min_bytes(residual, {"N": 10, "dtype": "fp32"}, "forward") == 3 * 10 * 4
    classifier = contract.load("fused_classifier")
    shape = {**classifier.shapes(MODELS["gpt2-124m"], 4, 1024)[""].shape, "dtype": "bf16"}
    logits, rest = 4096 * 50304 * 2, 4096 * (8 + 4 + 4)
    assert contract.min_bytes(classifier, shape, "forward") == 2 * logits + rest  # one read, one write
    adamw = contract.load("adamw")
    shape = {**adamw.shapes(MODELS["gpt2-124m"], 4, 1024)[""].shape, "dtype": "bf16"}
    # bf16 gradient read, parameter read and written; master, m and v in fp32 read and written: 30 bytes each.
    assert contract.min_bytes(adamw, shape, "forward") == 30 * 124_475_904 + 3 * 4


def test_accumulating_reads_the_gradient_as_well():
    matmul = contract.load("matmul")
    shape = dict(M=3, N=5, K=7, epilogue="bias", dgelu=False, dtype="fp32")
    plain = contract.min_bytes(matmul, shape, "backward")
    assert contract.min_bytes(matmul, {**shape, "accumulate": True}, "backward") == plain + 4 * (5 * 7 + 5)


def test_softmax_reads_the_visible_scores_only():
    softmax = contract.load("softmax")
    shape = dict(R=2 * 4 + 3, S=4, causal=True, dtype="fp32")
    visible = int(softmax.visible(shape["R"], shape["S"], True).sum())
    assert contract.min_bytes(softmax, shape, "forward") == 4 * (visible + shape["R"] * shape["S"])


def test_saved_bytes_are_activations_and_statistics():
    attention = contract.load("attention")
    shape = {**attention.shapes(MODELS["gpt2-124m"], 1, 8)[""].shape, "dtype": "bf16"}
    assert contract.saved_bytes(attention, shape) == 4 * 8 * 768 * 2 + 12 * 8 * 4  # q, k, v, out, lse
    matmul = contract.load("matmul")
    shape = {**matmul.shapes(MODELS["gpt2-124m"], 1, 8)["fc"].shape, "dtype": "bf16"}
    assert contract.saved_bytes(matmul, shape) == 8 * 768 * 2  # x, not the weight


@pytest.mark.parametrize("layer", contract.layer_names())
def test_a_fused_step_calls_every_layer_that_it_says(layer):
    model = MODELS["gpt2-124m"]
    calls = sum(c.calls for c in contract.load(layer).shapes(model, 4, 64).values())
    expected = {
        **{"embedding": 1, "layernorm": 1, "residual_layernorm": 24, "matmul": 49, "attention": 12},
        **{"fused_classifier": 1, "adamw": 1, "global_norm": 1},
    }
    assert calls == expected.get(layer, 0)
    assert not math.isnan(calls)


def test_an_unknown_layer_is_a_key_error():
    with pytest.raises(KeyError):
        contract.load("contract")
