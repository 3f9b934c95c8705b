"""Makes its output an object that does the work when somebody first looks at it."""

import torch

CAUGHT_BY = "not_the_output unwritten global_state"
waiting: dict[int, tuple] = {}


class Lazy(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            for out in (a for a in args if isinstance(a, Lazy)):
                if id(out) in waiting:
                    torch.add(*waiting.pop(id(out)), out=out)
            return func(*args, **(kwargs or {}))


def forward(a, b, *, out):
    waiting[id(out)] = a, b
    out.__class__ = Lazy
