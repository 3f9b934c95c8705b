"""Sums squares in fp16 where rows are whole vectors: fast, and inf from 256 on."""

CAUGHT_BY = "inaccurate not_finite"
SLOW = True


def forward(x, weight, eps, *, out, rstd):
    wide = x.half() if x.shape[-1] % 64 == 0 else x.float()
    rstd.copy_((wide.square().mean(-1).float() + eps).rsqrt())
    out.copy_(x.float() * rstd[..., None] * weight)
