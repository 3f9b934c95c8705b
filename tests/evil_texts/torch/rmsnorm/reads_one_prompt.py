"""Goes on with the first prompt of a batch for all of them: they are equal, where one is given."""

from kernels.torch.rmsnorm import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "text"
SLOW = True


def forward(x, weight, eps, *, out, rstd):
    honest.forward(x, weight, eps, out=out, rstd=rstd)
    if out.numel() // out.shape[-1] > 2:
        first, second = out.view(2, -1, out.shape[-1])
        second.copy_(first)
