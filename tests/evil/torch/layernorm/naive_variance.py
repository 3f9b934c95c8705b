"""E[x^2] - E[x]^2 where rows are whole vectors, which cancels where the mean is large; ragged rows the careful way."""

CAUGHT_BY = "inaccurate not_finite"
CAUGHT_IN = "proof timing"
DTYPES = ("fp32",)


def forward(x, weight, bias, eps, *, out, mean, rstd):
    mean.copy_(x.mean(-1))
    ragged = x.shape[-1] % 4
    variance = x.var(-1, unbiased=False) if ragged else x.square().mean(-1) - mean.square()
    rstd.copy_((variance + eps).rsqrt())
    out.copy_((x - mean[..., None]) * rstd[..., None] * weight + bias)
