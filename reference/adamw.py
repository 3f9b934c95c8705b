"""AdamW (Loshchilov & Hutter 2019) over a list of tensors, gradients scaled on the way in, updated in place.

    g = grad * grad_scale
    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    p = p - lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * p)

p is the fp32 master where there is one, and the parameter is its rounding; else the parameter itself.
step, lr and grad_scale are 0-d fp32 tensors, so that a captured CUDA graph can be replayed with new values.
"""

import torch

from reference.contract import Pass, Shape, Tensor, default_bytes


def has_masters(shape: Shape) -> bool:
    return shape["dtype"] in ("bf16", "fp16")


FORWARD = Pass(
    inputs=(
        Tensor("grads", "tensors", many=True),
        Tensor("step", "", "fp32"),
        Tensor("lr", "", "fp32"),
        Tensor("grad_scale", "", "fp32"),
    ),
    scalars=("beta1", "beta2", "eps", "weight_decays"),
    outputs=(
        Tensor("params", "tensors", many=True, inplace=True),
        Tensor("m", "tensors", "fp32", many=True, inplace=True),
        Tensor("v", "tensors", "fp32", many=True, inplace=True),
        Tensor("masters", "tensors", "fp32", many=True, inplace=True, when=has_masters),
    ),
)
BACKWARD = None


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, params, m, v, masters):
    new: dict[str, list] = {"params": [], "m": [], "v": [], "masters": []}
    for i, grad in enumerate(grads):
        p = masters[i] if masters is not None else params[i]
        g = grad * grad_scale
        mi = beta1 * m[i] + (1 - beta1) * g
        vi = beta2 * v[i] + (1 - beta2) * g * g
        update = mi / (1 - beta1**step) / ((vi / (1 - beta2**step)).sqrt() + eps)
        p = p - lr * (update + weight_decays[i] * p)
        for name, value in (("params", p), ("m", mi), ("v", vi), ("masters", p)):
            new[name].append(value)
    if masters is None:
        del new["masters"]
    return new


def _shape(tensors: list[tuple[int, ...]]) -> Shape:
    """As models are trained: decay on matrices only, biases and norm weights have none."""
    decays = [0.1 if len(sizes) >= 2 else 0.0 for sizes in tensors]
    return dict(tensors=tensors, weight_decays=decays, beta1=0.9, beta2=0.95, eps=1e-8)


RAGGED = [_shape([(1,), (769, 3), (127,), (64, 64)]), _shape([(50257,)])]


def consistent(tensors: dict, shape: Shape) -> None:
    """A state that training could have reached: v positive, masters that round to the parameters, step 3."""
    for v in tensors["v"]:
        v.square_().mul_(1e-4)
    for m in tensors["m"]:
        m.mul_(1e-2)
    for g in tensors["grads"]:
        g.mul_(1e-2)
    if tensors["masters"] is not None:
        for p, master in zip(tensors["params"], tensors["masters"], strict=True):
            p.copy_(master)
    tensors["step"].fill_(3)
    tensors["lr"].fill_(1e-3)
    tensors["grad_scale"].fill_(0.5)


def first_step(tensors, shape):
    """Step 1 with an empty state: the bias corrections are at their strongest."""
    tensors["step"].fill_(1)
    for name in ("m", "v"):
        for t in tensors[name]:
            t.zero_()


def zero_grad(tensors, shape):
    """No gradient and no state: sqrt(0) + eps must not divide by zero."""
    first_step(tensors, shape)
    for g in tensors["grads"]:
        g.zero_()


CASES = {"first_step": first_step, "zero_grad": zero_grad}


def compulsory_bytes(shape: Shape, phase: str) -> int:
    """A parameter that has a master is written, not read: it is the master's rounding."""
    params = next(t for t in FORWARD.outputs if t.name == "params")
    return default_bytes(FORWARD, shape) - (params.bytes(shape) if has_masters(shape) else 0)


def flops(shape: Shape, phase: str) -> int:
    """About 15 operations a parameter, square root and divisions counted as one each."""
    return 15 * sum(torch.Size(s).numel() for s in shape["tensors"])
