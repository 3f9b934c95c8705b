"""Linear layer: out = x @ weight^T (+ bias), optionally followed by tanh-GELU; weight is (out, in), as in torch."""

import torch

from reference.contract import FLAG, Pass, Shape, Tensor
from reference.gelu import gelu, gelu_grad

EPILOGUES = ("none", "bias", "bias_gelu")
CHOICES = {"epilogue": EPILOGUES, "dgelu": FLAG}


def has_bias(shape: Shape) -> bool:
    return shape["epilogue"] != "none"


def has_gelu(shape: Shape) -> bool:
    return shape["epilogue"] == "bias_gelu"


def input_was_gelu(shape: Shape) -> bool:
    return shape["dgelu"]


FORWARD = Pass(
    inputs=(
        Tensor("x", "M K"),
        Tensor("weight", "N K", parameter=True),
        Tensor("bias", "N", when=has_bias, parameter=True),
    ),
    scalars=("epilogue",),
    outputs=(
        Tensor("out", "M N"),
        Tensor("pre_gelu", "M N", when=has_gelu),  # out = gelu(pre_gelu); the next matmul's backward wants it
    ),
)
# dout is the gradient of x @ weight^T + bias. GELU's derivative is taken by the matmul that consumed its output:
# where x was gelu(x_pre_gelu), dx is the gradient of x_pre_gelu.
BACKWARD = Pass(
    inputs=(
        Tensor("dout", "M N"),
        Tensor("x", "M K"),
        Tensor("weight", "N K", parameter=True),
        Tensor("x_pre_gelu", "M K", when=input_was_gelu),
    ),
    outputs=(
        Tensor("dx", "M K"),
        Tensor("dweight", "N K", accumulates=True),
        Tensor("dbias", "N", when=has_bias, accumulates=True),
    ),
)


def forward(x, weight, bias, epilogue):
    out = x @ weight.T
    if epilogue != "none":
        out = out + bias
    return {"out": gelu(out), "pre_gelu": out} if epilogue == "bias_gelu" else {"out": out}


def backward(dout, x, weight, x_pre_gelu):
    dx = dout @ weight
    if x_pre_gelu is not None:
        dx = dx * gelu_grad(x_pre_gelu)
    return {"dx": dx, "dweight": dout.T @ x, "dbias": dout.sum(0)}


RAGGED = [
    dict(M=127, N=65, K=769, epilogue="bias", dgelu=True),
    dict(M=1, N=1, K=1, epilogue="none", dgelu=False),
    dict(M=33, N=257, K=48, epilogue="bias_gelu", dgelu=False),
    dict(M=128, N=192, K=256, epilogue="bias_gelu", dgelu=True),
    dict(M=256, N=256, K=64, epilogue="none", dgelu=False),  # whole tiles without an epilogue, as the head is
]


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """Weights at 1/sqrt(K), so that out is of the size of x, as after a sane initialisation."""
    tensors["weight"].mul_(shape["K"] ** -0.5)


def ones_and_zeros(tensors, shape):
    """Values of 0 and 1 are exact in every dtype: sums of up to 256 of them must be exact in bf16 inputs too."""
    for name in ("x", "weight"):
        tensors[name].copy_((tensors[name] > 0).to(tensors[name].dtype))


OUTLIER = 1e4  # as trained transformers have in a few channels; in fp16, whose products must fit, less


def _outliers(tensors, shape, index):
    size = 30 if shape["dtype"] == "fp16" else OUTLIER
    tensors["x"][:, index] *= size
    tensors["weight"][:, index] *= size
    if "dout" in tensors:  # dx is summed over the rows of weight
        tensors["weight"][index] *= size


def outliers_first(tensors, shape):
    """Ten thousand times the rest in the first place along the axis that is summed over."""
    _outliers(tensors, shape, 0)


def outliers_last(tensors, shape):
    """The same in the last place, which a ragged tile's tail holds."""
    _outliers(tensors, shape, -1)


def outlier_rows(tensors, shape):
    """The first row of x, and with it of dout, is large: a scale that a tile shares would lose the rows beside it."""
    for name in ("x", "dout"):
        if name in tensors:
            tensors[name][0] *= 30 if shape["dtype"] == "fp16" else OUTLIER


def _scaled(tensors, shape, size):
    """dout, or in forward x, times size; in fp16 as far as it goes."""
    if shape["dtype"] == "fp16":
        size = min(max(size, 1e-3), 1e2)
    tensors["dout" if "dout" in tensors else "x"].mul_(size)


def huge(tensors, shape):
    """Gradients, or in forward activations, of 1e20: GELU's cube does not fit fp32, its value does."""
    _scaled(tensors, shape, 1e20)


def tiny(tensors, shape):
    """Gradients, or in forward activations, of 1e-20."""
    _scaled(tensors, shape, 1e-20)


def one_nan(tensors, shape):
    """A NaN in the last element of x, or of dout: it spoils that row, or that row and column, and nothing else."""
    tensors["dout" if "dout" in tensors else "x"][-1, -1] = torch.nan


CASES = {
    "ones_and_zeros": ones_and_zeros,
    "outliers_first": outliers_first,
    "outliers_last": outliers_last,
    "outlier_rows": outlier_rows,
    "huge": huge,
    "tiny": tiny,
    "one_nan": one_nan,
}


def flops(shape: Shape, phase: str) -> int:
    """2MNK a product: one in forward, two in backward. Epilogues are not counted."""
    return 2 * shape["M"] * shape["N"] * shape["K"] * {"forward": 1, "backward": 2}[phase]
