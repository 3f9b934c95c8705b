"""Small made-up states for the tests of checkpoints."""

import torch

from bench.checkpoints.state import State, describe
from bench.core.case import DTYPES
from reference.models.gpt2 import GPT2
from reference.models.model import Model

MODEL = GPT2("made-up", L=2, NH=2, C=16, max_t=8, v=200)


def state(step: int = 7, dtype: str = "bf16", model: Model = MODEL, masters: bool = True) -> State:
    """A state whose numbers follow from its step."""
    generator = torch.Generator().manual_seed(step)

    def drawn(dtype: str) -> dict[str, torch.Tensor]:
        shapes = model.parameter_shapes().items()
        return {name: torch.randn(s, generator=generator).to(DTYPES[dtype]) for name, s in shapes}

    fp32 = [drawn("fp32") for _ in range(3)]
    rest = {"vocabulary": "ab" * 32, "window": [0.1, float("nan"), 1 / 3], "data": {"step": step}, "updates": step}
    return State(step, describe(model), dtype, drawn(dtype), fp32[0] if masters else None, fp32[1], fp32[2], rest)


def same(a: State, b: State) -> bool:
    """Bit for bit."""

    def equal(x, y):
        return x.keys() == y.keys() and all(x[n].dtype == y[n].dtype and torch.equal(x[n], y[n]) for n in x)

    named = ("weights", "m", "v")
    masters = a.masters is b.masters is None or equal(a.masters or {}, b.masters or {})
    said = (a.step, a.model, a.dtype, repr(a.rest)) == (b.step, b.model, b.dtype, repr(b.rest))
    return said and masters and all(equal(getattr(a, n), getattr(b, n)) for n in named)
