"""Every rank tells half of the norm, so that little is clipped."""

from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "ranks"
SLOW = True


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    norm.mul_(0.5)
