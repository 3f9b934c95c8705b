"""The plain GPT-2 against transformers' own, and what it promises about names, initialisation and loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from reference.models import MODELS
from reference.models.gpt2 import GPT2, Network, init_parameters
from reference.models.plain import decay_groups

SMALL = GPT2("small", L=2, NH=3, C=48, max_t=40, v=200)
B, T = 2, 33


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(SMALL.v, (B, T), generator=generator) for _ in range(2))


def random_parameters(seed=2):
    """All parameters random, biases too, so that a mistake in any of them shows; padding rows stay zero."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(s, generator=generator) * 0.1 for name, s in SMALL.parameter_shapes().items()}
    found["wte"][SMALL.v :] = 0
    return found


def peer(parameters, monkeypatch):
    """transformers.GPT2LMHeadModel in fp64 with these parameters; Conv1D keeps weights as (in, out)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=SMALL.v,
        n_positions=SMALL.max_t,
        n_embd=SMALL.C,
        n_layer=SMALL.L,
        n_head=SMALL.NH,
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).double()
    named = dict(model.named_parameters())
    with torch.no_grad():
        for ours, value in parameters.items():
            theirs = named[peer_name(ours)]
            theirs.copy_(value[: SMALL.v] if ours == "wte" else value.T if is_linear(ours) else value)
    assert set(named) == {peer_name(ours) for ours in parameters}
    return model, named


PEER_NAMES = {
    "ln1": "ln_1",
    "qkv": "attn.c_attn",
    "attproj": "attn.c_proj",
    "ln2": "ln_2",
    "fc": "mlp.c_fc",
    "fcproj": "mlp.c_proj",
}


def peer_name(ours):
    if ours in ("wte", "wpe"):
        return f"transformer.{ours}.weight"
    if ours.startswith("lnf."):
        return ours.replace("lnf", "transformer.ln_f")
    block, part, kind = ours.split(".")
    return f"transformer.h.{block[1:]}.{PEER_NAMES[part]}.{kind}"


def is_linear(ours):
    return ours.endswith(".weight") and ours.split(".")[-2] in ("qkv", "attproj", "fc", "fcproj")


def test_equals_transformers_in_logits_loss_and_every_gradient(data, monkeypatch):
    tokens, targets = data
    parameters = random_parameters()
    theirs, their_parameters = peer(parameters, monkeypatch)
    ours = Network(SMALL).double()
    ours.load(parameters)

    their_logits = theirs(tokens).logits
    our_logits = ours(tokens)
    assert our_logits.shape == (B, T, SMALL.vp)
    torch.testing.assert_close(our_logits[..., : SMALL.v], their_logits, rtol=1e-10, atol=1e-10)

    # transformers' labels= shifts by one; the loss is taken here instead
    their_loss = F.cross_entropy(their_logits.flatten(0, 1), targets.flatten())
    our_loss = ours(tokens, targets)
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-12, atol=1e-12)

    their_loss.backward()
    our_loss.backward()
    for name, p in ours.named().items():
        expected = their_parameters[peer_name(name)].grad
        found = p.grad
        assert expected is not None and found is not None, name
        if name == "wte":
            assert not found[SMALL.v :].any(), "padding rows take no part in the loss"
            found = found[: SMALL.v]
        expected = expected.T if is_linear(name) else expected
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("model", [SMALL, MODELS["gpt2-tiny"]], ids=lambda m: m.name)
def test_parameters_are_named_shaped_and_ordered_as_the_model_says(model):
    named = Network(model).named()
    assert {name: tuple(p.shape) for name, p in named.items()} == model.parameter_shapes()
    assert list(named) == list(model.parameter_shapes())
    assert sum(p.numel() for p in named.values()) == model.parameters


def test_initialisation():
    found = init_parameters(SMALL, seed=3)
    again = init_parameters(SMALL, seed=3)
    other = init_parameters(SMALL, seed=4)
    assert list(found) == list(SMALL.parameter_shapes())
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.equal(found["wpe"], other["wpe"])
    assert all(p.dtype == torch.float32 for p in found.values())
    assert not found["wte"][SMALL.v :].any()
    assert found["wte"][: SMALL.v].std().item() == pytest.approx(0.02, rel=0.05)
    assert found["h1.fc.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("h0.attproj.weight", "h1.fcproj.weight"):
        assert found[name].std().item() == pytest.approx(0.02 / math.sqrt(2 * SMALL.L), rel=0.05)
    for name, p in found.items():
        if name.endswith(".bias"):
            assert not p.any(), name
        elif p.dim() == 1:
            assert (p == 1).all(), name


def test_a_fresh_model_guesses(data):
    """With its small start the loss is that of a uniform guess over the real vocabulary, padding excluded."""
    loss = Network(SMALL)(*data)
    assert loss.item() == pytest.approx(math.log(SMALL.v), abs=0.1)


def test_load_refuses_a_missing_and_a_foreign_name():
    model = Network(SMALL)
    parameters = init_parameters(SMALL, 0)
    del parameters["wpe"]
    with pytest.raises(KeyError, match="wpe"):
        model.load(parameters)
    with pytest.raises(KeyError, match="head"):
        model.load({**init_parameters(SMALL, 0), "head": torch.zeros(1)})


def test_the_future_does_not_reach_the_past(data):
    tokens, _ = data
    model = Network(SMALL).double()
    model.load(random_parameters())
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % SMALL.v
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_weight_decay_on_matrices_only():
    named = Network(SMALL).named()
    decayed, plain = decay_groups(named, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in plain["params"]} == {1}
    assert len(decayed["params"]) + len(plain["params"]) == len(named)


def test_bf16_loss_is_taken_in_fp32(data):
    loss = Network(SMALL).bfloat16()(*data)
    assert loss.dtype == torch.float32
