"""The plain Llama 2 against transformers' own, and what it promises about names, initialisation and loss."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference.models import MODELS
from reference.models.llama2 import Llama2, Network, init_parameters
from reference.rope import table
from tests.bench.checkpoints.llamas import their_config

SMALL = Llama2("small", L=2, NH=4, NKV=2, C=48, H=40, max_t=40, v=200, theta=500.0)
UNTIED = replace(SMALL, NKV=1, tied=False, eps=1e-3)
B, T = 2, 33


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(SMALL.v, (B, T), generator=generator) for _ in range(2))


def random_parameters(model, seed=2):
    """All parameters random, norm weights too, so that a mistake in any of them shows; padding rows stay zero."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(s, generator=generator) * 0.2 for name, s in model.parameter_shapes().items()}
    for name in {"wte", "head.weight"} & found.keys():
        found[name][model.v :] = 0
    return found


class Angles(torch.nn.Module):
    """transformers' rotary embedding with the angles of `reference.rope.table`."""

    def __init__(self, model):
        super().__init__()
        self.pair = table(model.max_t, model.head_size, model.theta)

    def forward(self, x, position_ids):
        return tuple(torch.cat((half, half), -1).double()[position_ids] for half in self.pair)


def wide_norm(self, x):
    return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


def peer(model, parameters, monkeypatch, exact):
    """transformers.LlamaForCausalLM with these parameters; exact: in fp64 all through, norms and angles too, for which
    it takes fp32 whatever the rest is."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    theirs = LlamaForCausalLM(their_config(model)).double()
    if exact:
        theirs.model.rotary_emb = Angles(model)
        monkeypatch.setattr(LlamaRMSNorm, "forward", wide_norm)
    named = dict(theirs.named_parameters())
    known = set()
    with torch.no_grad():
        for name, value in parameters.items():
            for their_name, part in parts(model, name, value):
                known.add(their_name)
                named[their_name].copy_(part)
    assert known == set(named)
    return theirs, named


def parts(model, name, value):
    """(transformers' name, value) of every tensor that one of ours is there."""
    if name in ("wte", "head.weight"):
        yield "model.embed_tokens.weight" if name == "wte" else "lm_head.weight", value[: model.v]
    elif name == "norm.weight":
        yield "model.norm.weight", value
    else:
        block, part, _ = name.split(".")
        at = f"model.layers.{block[1:]}"
        if part == "qkv":
            q, k, v = value.split([n * model.head_size for n in (model.NH, model.NKV, model.NKV)])
            for letter, rows in (("q", half_split(q, model)), ("k", half_split(k, model)), ("v", v)):
                yield f"{at}.self_attn.{letter}_proj.weight", rows
        elif part == "gate_up":
            for which, rows in zip(("gate", "up"), value.chunk(2), strict=True):
                yield f"{at}.mlp.{which}_proj.weight", rows
        else:
            where = dict(
                norm1="input_layernorm",
                norm2="post_attention_layernorm",
                attproj="self_attn.o_proj",
                down="mlp.down_proj",
            )
            yield f"{at}.{where[part]}.weight", value


def half_split(rows, model):
    """Rows of q or k whose rotated pairs are neighbours, as transformers has them: first all first ones of a head."""
    return rows.view(-1, model.head_size // 2, 2, model.C).transpose(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("model", [SMALL, UNTIED], ids=["tied", "untied"])
def test_equals_transformers_in_logits_loss_and_every_gradient(data, monkeypatch, model):
    tokens, targets = data
    parameters = random_parameters(model)
    theirs, their_parameters = peer(model, parameters, monkeypatch, exact=True)
    ours = Network(model).double()
    ours.load(parameters)

    their_logits, our_logits = theirs(tokens).logits, ours(tokens)
    assert our_logits.shape == (B, T, model.vp)
    torch.testing.assert_close(our_logits[..., : model.v], their_logits, rtol=1e-10, atol=1e-10)

    # transformers' labels= shifts by one; the loss is taken here instead
    their_loss = F.cross_entropy(their_logits.flatten(0, 1), targets.flatten())
    our_loss = ours(tokens, targets)
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-12, atol=1e-12)

    their_loss.backward()
    our_loss.backward()
    for name, p in ours.named().items():
        assert p.grad is not None, name
        if name in ("wte", "head.weight"):
            assert not p.grad[model.v :].any(), "padding rows take no part in the loss"
        for their_name, found in parts(model, name, p.grad):
            expected = their_parameters[their_name].grad
            assert expected is not None and expected.abs().max() > 0, their_name
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=their_name)


def test_equals_transformers_as_it_comes(data, monkeypatch):
    """With its own norms and angles, which are fp32: so what the test above puts in their place is the same thing."""
    parameters = random_parameters(SMALL)
    theirs, _ = peer(SMALL, parameters, monkeypatch, exact=False)
    ours = Network(SMALL).double()
    ours.load(parameters)
    with torch.no_grad():
        torch.testing.assert_close(ours(data[0])[..., : SMALL.v], theirs(data[0]).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", [SMALL, UNTIED, MODELS["llama2-tiny"]], ids=["tied", "untied", "llama2-tiny"])
def test_parameters_are_named_shaped_and_ordered_as_the_model_says(model):
    named = Network(model).named()
    assert {name: tuple(p.shape) for name, p in named.items()} == model.parameter_shapes()
    assert list(named) == list(model.parameter_shapes())
    assert sum(p.numel() for p in named.values()) == model.parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama2-15m", 15_191_712),
        ("llama2-42m", 41_689_600),
        ("llama2-110m", 109_529_856),
        ("llama2-7b", 6_738_415_616),
    ],
)
def test_the_sizes_are_the_published_ones(name, parameters):
    """llama2.c's README and Touvron et al. The vocabulary is a multiple of 128 already, so nothing is padding."""
    model = MODELS[name]
    assert isinstance(model, Llama2) and model.parameters == parameters and model.vp == model.v == 32000
    assert model.calls(1, 2)["rope"][""].shape["S"] == model.max_t


def test_flops_are_palms_and_leave_out_what_is_only_looked_up():
    model = MODELS["llama2-15m"]
    assert model.flops_per_token(256)["palm"] == 6 * 15_191_712 + 12 * 6 * 288 * 256
    tied = replace(UNTIED, tied=True)
    assert UNTIED.flops_per_token(8)["palm"] == tied.flops_per_token(8)["palm"]
    assert UNTIED.flops_per_token(8)["llmc"] > tied.flops_per_token(8)["llmc"]


def test_initialisation():
    found, again, other = (init_parameters(UNTIED, seed) for seed in (3, 3, 4))
    assert list(found) == list(UNTIED.parameter_shapes())
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.equal(found["wte"], other["wte"])
    assert all(p.dtype == torch.float32 for p in found.values())
    for name in ("wte", "head.weight"):
        assert not found[name][UNTIED.v :].any()
        assert found[name][: UNTIED.v].std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("h0.attproj.weight", "h1.down.weight"):
        assert found[name].std().item() == pytest.approx(0.02 / math.sqrt(2 * UNTIED.L), rel=0.05)
    assert all((p == 1).all() for p in found.values() if p.dim() == 1)


def test_a_fresh_model_guesses(data):
    """With its small start the loss is that of a uniform guess over the real vocabulary, padding excluded."""
    assert Network(SMALL)(*data).item() == pytest.approx(math.log(SMALL.v), abs=0.1)


def test_the_future_does_not_reach_the_past(data):
    tokens, _ = data
    model = Network(SMALL).double()
    model.load(random_parameters(SMALL))
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % SMALL.v
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_in_bf16_angles_stay_fp32_and_the_loss_is_taken_in_fp32(data):
    network = Network(SMALL).bfloat16()
    assert network.cos.dtype == network.sin.dtype == torch.float32
    loss = network(*data)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in network.parameters())


@pytest.mark.parametrize("sizes", [dict(NH=5), dict(NKV=3), dict(NH=16, NKV=16)])
def test_heads_that_do_not_divide_are_refused(sizes):
    with pytest.raises(ValueError, match="make no even heads in equal groups"):
        replace(SMALL, **sizes)
