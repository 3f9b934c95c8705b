"""SwiGLU's elementwise half (Shazeer 2020): out = silu(gate) * up, silu(g) = g sigmoid(g).

gate and up are the two halves of each row of x, as one matmul with both weights writes them: gate = x[:, :H],
up = x[:, H:].
"""

import torch

from reference.contract import Pass, Shape, Tensor, applies, scaled, wide

FORWARD = Pass(inputs=(Tensor("x", "M 2*H"),), outputs=(Tensor("out", "M H"),))
BACKWARD = Pass(inputs=(Tensor("dout", "M H"), Tensor("x", "M 2*H")), outputs=(Tensor("dx", "M 2*H"),))


def forward(x):
    gate, up = x.chunk(2, -1)
    return {"out": gate * torch.sigmoid(gate) * up}


def backward(dout, x):
    gate, up = x.chunk(2, -1)
    s = torch.sigmoid(gate)
    # silu' = s (1 + g (1 - s)), and 1 - s is sigmoid(-g). It comes first: where gates and gradients are huge it is
    # 0 or 1, which dout * up might not live to see.
    dgate = s * (1 + gate * torch.sigmoid(-gate)) * up * dout
    return {"dx": torch.cat([dgate, gate * s * dout], -1)}


RAGGED = [
    dict(M=5, H=769),
    dict(M=1, H=1),
    dict(M=33, H=172),  # of a small Llama: no whole vectors
    dict(M=127, H=10),
    dict(M=24, H=128),
    dict(M=1, H=11008),  # one row: what is done in parallel must be columns
]


def _gate(tensors):
    return tensors["x"].chunk(2, -1)[0]


def tails(tensors, shape):
    """Far tails, where exp overflows in a careless formula; and zero itself."""
    _gate(tensors).mul_(30)
    _gate(tensors)[:1] = 0


@applies(when=wide)
def small_times_large(tensors, shape):
    """Gates down to -80, and their up so large that what is left of them counts: a sigmoid that is 0 to a number of
    digits, rather than small, shows. Elements are of all sizes, row by row."""
    gate, up = tensors["x"].chunk(2, -1)
    gate.abs_().mul_(-20).clamp_(min=-80)
    up.mul_(torch.exp(-gate.double()).to(up.dtype))


@applies(when=wide)
def tiny(tensors, shape):
    """Gates of 1e-20: half of each is what comes of it, whatever is lost beside a gate of one."""
    _gate(tensors).mul_(1e-20)


def far_left(tensors, shape):
    """Gates from -10 to the end of the dtype: 0 there, where a bound exponent leaves something times a large gate.
    Ordinary values lie between."""
    gate = _gate(tensors)
    flat = gate.reshape(-1)
    last = 4.8 if shape["dtype"] == "fp16" else 18.0 if "dout" in tensors else 38.5
    far = -(10 ** torch.linspace(1, last, len(flat), dtype=torch.float64)).to(flat.dtype)
    gate.copy_(torch.where(torch.arange(len(flat)) % 4 == 3, flat, far).view_as(gate))


def far_right(tensors, shape):
    """The same on the other side, where silu is the gate itself and its slope 1; up is below 1, so that nothing
    overflows. In backward it is as large as the gate, else the gradient of up would hide that of the gate beside it."""
    far_left(tensors, shape)
    gate, up = tensors["x"].chunk(2, -1)
    gate.abs_()
    up.copy_(torch.sin(up))
    if "dout" in tensors:
        up.mul_(gate)
        tensors["dout"].sin_()


def not_finite(tensors, shape):
    """A NaN in a gate and one in an up of another row and column; in backward an infinite gradient. All else stays."""
    gate, up = tensors["x"].chunk(2, -1)
    gate[0, shape["H"] // 2] = torch.nan
    up[-1, shape["H"] // 3] = torch.nan
    if "dout" in tensors:
        gate[-1, -1], up[-1, -1], tensors["dout"][-1, -1] = 1, 1, torch.inf
    else:
        gate[-1, -1], up[-1, -1] = torch.inf, 1


CASES = {
    "tails": tails,
    "small_times_large": small_times_large,
    "tiny": tiny,
    "far_left": far_left,
    "far_right": far_right,
    "not_finite": not_finite,
    "huge_gradient": scaled("dout", 1e20),
    "tiny_gradient": scaled("dout", 1e-20),
}


def flops(shape: Shape, phase: str) -> int:
    """An exponential, an addition, a division and a product an element, a function counted as one; seven more products
    and sums in backward."""
    return shape["M"] * shape["H"] * {"forward": 4, "backward": 11}[phase]


def typical(B: int, T: int) -> Shape:
    """Of Llama 2 with 110 million parameters (llama2.c): 2048 channels."""
    return dict(M=B * T, H=2048)
