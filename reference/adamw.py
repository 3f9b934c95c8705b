"""AdamW (Loshchilov & Hutter 2019) over a list of tensors, gradients scaled on the way in, updated in place.

    g = grad * grad_scale
    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    p = p - lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * p)

p is the fp32 master where there is one, and the parameter is its rounding; else the parameter itself.
step, lr and grad_scale are 0-d fp32 tensors, so that a captured CUDA graph can be replayed with new values.
"""

import math

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
TIED = ("params", "masters")  # a parameter is its master, rounded


def forward(grads, step, lr, grad_scale, beta1, beta2, eps, weight_decays, params, m, v, masters):
    new: dict[str, list] = {"params": [], "m": [], "v": [], "masters": []}
    for i, grad in enumerate(grads):
        p = masters[i] if masters is not None else params[i]
        g = grad * grad_scale
        mi = beta1 * m[i] + (1 - beta1) * g
        vi = beta2 * v[i] + (1 - beta2) * g * g
        update = mi / correction(beta1, step) / ((vi / correction(beta2, step)).sqrt() + eps)
        p = p - lr * (update + weight_decays[i] * p)
        for name, value in (("params", p), ("m", mi), ("v", vi), ("masters", p)):
            new[name].append(value)
    if masters is None:
        del new["masters"]
    return new


def correction(beta: float, step: torch.Tensor) -> torch.Tensor:
    """1 - beta^step, without the cancellation: 1 - 0.9999 has lost three of fp32's digits."""
    return -torch.expm1(step * math.log(beta)) if beta else torch.ones_like(step)


def _shape(tensors: list[tuple[int, ...]], beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1) -> Shape:
    """As models are trained: decay on matrices only, biases and norm weights have none."""
    decays = [decay if len(sizes) >= 2 else 0.0 for sizes in tensors]
    return dict(tensors=tensors, weight_decays=decays, beta1=beta1, beta2=beta2, eps=eps)


RAGGED = [
    _shape([(1,), (769, 3), (127,), (64, 64)]),
    _shape([(50257,)]),
    # torch.optim's own defaults, whole vectors and chunks; then what hides in the usual constants: an eps that is felt,
    # no momentum, a decay as large as the update
    _shape([(2, 4096), (2048,)], beta2=0.999, decay=0.01),
    _shape([(33, 5), (16,)], beta1=0.0, beta2=0.9999, eps=0.1, decay=100.0),
]


def consistent(tensors: dict, shape: Shape) -> None:
    """A state that training could have reached: v positive, masters that round to the parameters, step 3. The learning
    rate is another one in each draw, as it is in each step of a schedule."""
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
    tensors["lr"].tanh_().div_(2).add_(1).mul_(1e-3)
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


def no_gradient(tensors, shape):
    """An all-zero gradient in the midst of training: moments fade, weights still decay and coast on."""
    for g in tensors["grads"]:
        g.zero_()


def at_step(number: int):
    def edit(tensors, shape):
        tensors["step"].fill_(number)

    edit.__doc__ = f"Step {number}."
    return edit


def scaled(tensors, shape, size, scale):
    """Gradients of about `size` (fp16: as near as it goes) and a grad_scale that belongs to them; an empty state."""
    if shape["dtype"] == "fp16":
        size, scale = (1e3, 1e-3) if size > 1 else (1e-3, scale)
    first_step(tensors, shape)
    for g in tensors["grads"]:
        g.mul_(size / 1e-2)
    tensors["grad_scale"].fill_(scale)


def clipped_from_huge(tensors, shape):
    """Gradients of 1e20 that clipping scales to 1: squared before they are scaled, they overflow."""
    scaled(tensors, shape, 1e20, 1e-20)


def tiny_gradient(tensors, shape):
    """Gradients of 1e-16, far below eps: the update is m / eps and all but vanishes, and v is 1e-33, no less."""
    scaled(tensors, shape, 1e-16, 1.0)


def one_nan(tensors, shape):
    """A NaN in one element of the first gradient: it spoils that element's state and no other."""
    tensors["grads"][0].flatten()[-1:].fill_(torch.nan)


CASES = {
    "first_step": first_step,
    "zero_grad": zero_grad,
    "no_gradient": no_gradient,
    "step_2": at_step(2),
    "step_10": at_step(10),
    "step_1000": at_step(1000),
    "step_2_24": at_step(2**24),
    "clipped_from_huge": clipped_from_huge,
    "tiny_gradient": tiny_gradient,
    "one_nan": one_nan,
}


def compulsory_bytes(shape: Shape, phase: str) -> int:
    """A parameter that has a master is written, not read: it is the master's rounding."""
    params = next(t for t in FORWARD.outputs if t.name == "params")
    return default_bytes(FORWARD, shape) - (params.bytes(shape) if has_masters(shape) else 0)


def flops(shape: Shape, phase: str) -> int:
    """About 15 operations a parameter, square root and divisions counted as one each."""
    return 15 * sum(torch.Size(s).numel() for s in shape["tensors"])
