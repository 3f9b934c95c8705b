"""Imports torch under a name that no search of its source would find."""

import importlib

CAUGHT_BY = "library source"
library = importlib.import_module("hcrot"[::-1])


def forward(a, b, *, out):
    getattr(library, "dda"[::-1])(a, b, out=out)
