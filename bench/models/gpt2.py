"""GPT-2 as a list of calls."""

from collections.abc import Collection, Iterator

import torch

from bench.models.calls import Call, Key, again, layer_of
from bench.models.memory import Activations, Memory
from reference import contract
from reference.models import Model

LAYERS = (
    "embedding",
    "layernorm",
    "residual_layernorm",
    "matmul",
    "attention",
    "fused_classifier",
    "global_norm",
    "adamw",
)
MAX_NORM = 1.0  # gradients are clipped to this global L2 norm, as GPT-2 is trained
CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_'s guard against a division by zero


def step_shapes(model: Model, B: int, T: int, dtype: str, recompute: Collection[str] = ()) -> dict[str, contract.Call]:
    """{id: Call} for every layer and shape that the step uses; shapes carry their dtype.

    recompute: of RECOMPUTABLE; each adds a forward "<layer>/recompute".
    """
    found = {}
    for layer in LAYERS:
        for name, call in contract.load(layer).shapes(model, B, T).items():
            found[f"{layer}/{name}" if name else layer] = contract.Call({**call.shape, "dtype": dtype}, call.calls)
    for layer in recompute:
        (call,) = contract.load(layer).shapes(model, B, T).values()
        calls = {"gelu": model.L, "layernorm": 2 * model.L}[layer]
        found[again(layer)] = contract.Call({**call.shape, "dtype": dtype}, calls)
    return found


def step_keys(model: Model, B: int, T: int, dtype: str, recompute: Collection[str] = ()) -> list[Key]:
    """Every (id, phase) that needs a variant."""
    keys = []
    for id in step_shapes(model, B, T, dtype, recompute):
        phases = contract.phases_of(contract.load(layer_of(id)))
        keys += [(id, phase) for phase in phases if phase == "forward" or id != again(layer_of(id))]
    return keys


def forward_backward(mem: Memory, accumulate: bool) -> list[Call]:
    """One micro-batch, from `mem.tokens` and `mem.targets` to `mem.losses` and `mem.grads`.

    accumulate: False on the first micro-batch of a step (gradients are overwritten), True on the others.
    """
    return [*_forward(mem), *_backward(mem, accumulate)]


def _forward(mem: Memory) -> Iterator[Call]:
    P, btc, L = mem.params, mem.btc, mem.model.L
    eps = contract.load("layernorm").EPS

    def matmul(name: str, x, weight, bias, epilogue, out, pre_gelu=None) -> Call:
        return Call(f"matmul/{name}", "forward", (x, weight, bias, epilogue), dict(out=out, pre_gelu=pre_gelu))

    def residual_layernorm(name, residual, norm, residual_out, out, mean, rstd) -> Call:
        inputs = (btc(mem.branch), btc(residual), P[f"{norm}.weight"], P[f"{norm}.bias"], eps)
        outputs = dict(residual_out=btc(residual_out), out=btc(out), mean=mean, rstd=rstd)
        return Call(f"residual_layernorm/{name}", "forward", inputs, outputs)

    yield Call("embedding", "forward", (mem.tokens, P["wte"], P["wpe"][: mem.T]), dict(out=mem.embedded))
    stream = mem.embedded.view(mem.B * mem.T, -1)
    yield Call(
        "layernorm",
        "forward",
        (mem.embedded, P["h0.ln1.weight"], P["h0.ln1.bias"], eps),
        dict(out=btc(mem.blocks[0].norm1), mean=mem.mean, rstd=mem.rstd),
    )
    for i, a in enumerate(mem.blocks):
        weight = {n: P[f"h{i}.{n}.weight"] for n in ("qkv", "attproj", "fc", "fcproj")}
        bias = {n: P[f"h{i}.{n}.bias"] for n in weight}
        yield matmul("qkv", a.norm1, weight["qkv"], bias["qkv"], "bias", a.qkv)
        outputs = dict(out=mem.heads(a.attention), lse=a.lse)
        yield Call("attention", "forward", (*mem.q_k_v(a.qkv), True), outputs)
        yield matmul("attproj", a.attention, weight["attproj"], bias["attproj"], "bias", mem.branch)
        yield residual_layernorm("block", stream, f"h{i}.ln2", a.residual1, a.norm2, a.mean2, a.rstd2)
        yield matmul("fc", a.norm2, weight["fc"], bias["fc"], "bias_gelu", a.gelu, a.pre_gelu)
        yield matmul("fcproj", a.gelu, weight["fcproj"], bias["fcproj"], "bias", mem.branch)
        name, norm, out = ("block", f"h{i + 1}.ln1", mem.blocks[i + 1].norm1) if i + 1 < L else _last(mem)
        yield residual_layernorm(name, a.residual1, norm, a.residual2, out, a.mean, a.rstd)
        stream = a.residual2
    yield matmul("lm_head", mem.final, P["wte"], None, "none", mem.logits)
    outputs = dict(logits=btc(mem.logits), losses=mem.losses)
    yield Call("fused_classifier", "forward", (mem.targets, mem.dlosses, mem.model.v), outputs)


def _last(mem: Memory) -> tuple[str, str, torch.Tensor]:
    return "final", "lnf", mem.final


def _backward(mem: Memory, accumulate: bool) -> Iterator[Call]:
    P, G, btc = mem.params, mem.grads, mem.btc
    stream, other = mem.streams  # gradient of the residual stream: the one that holds it now, the one to write next

    def matmul(name: str, dout, x, parameter, dx, x_pre_gelu=None) -> Call:
        dbias = G.get(f"{parameter.removesuffix('weight')}bias")
        inputs = (dout, x, P[parameter], x_pre_gelu, accumulate)
        return Call(f"matmul/{name}", "backward", inputs, dict(dx=dx, dweight=G[parameter], dbias=dbias))

    def residual_layernorm(name, dresidual_out, residual_out, norm, mean, rstd, dresidual) -> Call:
        dstream = None if dresidual_out is None else btc(dresidual_out)
        inputs = (btc(mem.dbranch), dstream, btc(residual_out), P[f"{norm}.weight"], mean, rstd, accumulate)
        outputs = dict(dresidual=btc(dresidual), dweight=G[f"{norm}.weight"], dbias=G[f"{norm}.bias"])
        return Call(f"residual_layernorm/{name}", "backward", inputs, outputs)

    def layernorm_again(x: torch.Tensor, norm: str, out: torch.Tensor) -> Iterator[Call]:
        if "layernorm" in mem.recompute:
            inputs = (btc(x), P[f"{norm}.weight"], P[f"{norm}.bias"], contract.load("layernorm").EPS)
            outputs = dict(out=btc(out), mean=mem.mean_again, rstd=mem.rstd_again)
            yield Call(again("layernorm"), "forward", inputs, outputs)

    def gelu_again(a: Activations) -> Iterator[Call]:
        if "gelu" in mem.recompute:
            yield Call(again("gelu"), "forward", (a.pre_gelu.view(-1),), dict(out=a.gelu.view(-1)))

    # The head is tied to wte: this gradient goes into dwte first, the embedding's is added at the end.
    yield matmul("lm_head", mem.logits, mem.final, "wte", mem.dbranch)
    for i in reversed(range(mem.model.L)):
        a = mem.blocks[i]
        if i + 1 == mem.model.L:
            yield residual_layernorm("final", None, a.residual2, "lnf", a.mean, a.rstd, stream)
        else:
            yield residual_layernorm("block", stream, a.residual2, f"h{i + 1}.ln1", a.mean, a.rstd, other)
            stream, other = other, stream
        # A residual add hands its gradient to both sides, so `stream` is the gradient of fcproj's output too.
        yield from gelu_again(a)
        yield matmul("fcproj", stream, a.gelu, f"h{i}.fcproj.weight", mem.dwide, a.pre_gelu)
        yield from layernorm_again(a.residual1, f"h{i}.ln2", a.norm2)
        yield matmul("fc", mem.dwide, a.norm2, f"h{i}.fc.weight", mem.dbranch)
        yield residual_layernorm("block", stream, a.residual1, f"h{i}.ln2", a.mean2, a.rstd2, other)
        stream, other = other, stream
        yield matmul("attproj", stream, a.attention, f"h{i}.attproj.weight", mem.dbranch)
        inputs = (mem.heads(mem.dbranch), *mem.q_k_v(a.qkv), mem.heads(a.attention), a.lse, True)
        outputs = dict(zip(("dq", "dk", "dv"), mem.q_k_v(mem.dqkv), strict=True))
        yield Call("attention", "backward", inputs, outputs)
        into_block = mem.blocks[i - 1].residual2 if i else mem.embedded
        yield from layernorm_again(into_block, f"h{i}.ln1", a.norm1)
        yield matmul("qkv", mem.dqkv, a.norm1, f"h{i}.qkv.weight", mem.dbranch)
    yield Call(
        "layernorm",
        "backward",
        (btc(mem.dbranch), btc(stream), mem.embedded, P["h0.ln1.weight"], mem.mean, mem.rstd, accumulate),
        dict(dx=btc(other), dweight=G["h0.ln1.weight"], dbias=G["h0.ln1.bias"]),
    )
    # accumulate=True on the first micro-batch as well: dwte holds the head's part, `Step` has cleared dwpe.
    inputs = (btc(other), mem.tokens, mem.model.vp, True)
    yield Call("embedding", "backward", inputs, dict(dwte=G["wte"], dwpe=G["wpe"][: mem.T]))


def norm_call(mem: Memory) -> Call:
    return Call("global_norm", "forward", (list(mem.grads.values()),), dict(norm=mem.norm))


def adamw_call(mem: Memory) -> Call:
    adamw = contract.load("adamw")
    lists = {n: None if d is None else list(d.values()) for n, d in vars(mem).items() if n in ADAMW_STATE}
    decays = adamw.weight_decays(list(mem.model.parameter_shapes().values()))
    h = adamw.HYPER
    inputs = (
        list(mem.grads.values()),
        mem.step,
        mem.lr,
        mem.grad_scale,
        h["beta1"],
        h["beta2"],
        h["eps"],
        decays,
    )
    return Call("adamw", "forward", inputs, {name: lists[name] for name in ADAMW_STATE})


ADAMW_STATE = ("params", "m", "v", "masters")
