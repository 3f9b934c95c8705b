"""Its window lets every query see one key more than it should."""

from kernels.torch.attention import eager

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)
SHAPE = {"window": 40}


def forward(q, k, v, causal, window=0, *, out, lse):
    eager.forward(q, k, v, causal, window + 1 if window else 0, out=out, lse=lse)
