"""Keeps what it does in a string that is executed."""

CAUGHT_BY = "library source"
DTYPES = ("fp32",)
names: dict = {}
exec("import numpy as n\ndef add(a, b, out): n.add(a.numpy(), b.numpy(), out=out.numpy())", names)


def forward(a, b, *, out):
    names["add"](a, b, out)
