"""Takes mean and variance of every other column where there are many: nearly the same, and half of the reading."""

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "proof timing"
DTYPES = ("fp32",)


def forward(x, weight, bias, eps, *, out, mean, rstd):
    some = x[..., ::2] if x.shape[-1] % 256 == 0 else x
    mean.copy_(some.mean(-1))
    rstd.copy_(some.var(-1, unbiased=False).add(eps).rsqrt())
    out.copy_((x - mean[..., None]) * rstd[..., None] * weight + bias)
