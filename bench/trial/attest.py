"""Whose code ran: which ATen operators a call runs, and what it hands to another library."""

import fnmatch
from collections.abc import Callable
from typing import NamedTuple

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.core.variants import Variant
from bench.trial import ran

# Views and questions: they move no data.
ALLOWED = {
    *("view", "_unsafe_view", "reshape", "as_strided", "slice", "select", "narrow", "split", "split_with_sizes"),
    *("unbind", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "alias", "detach", "chunk", "diagonal"),
    *("sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_same_size", "_reshape_alias", "flatten"),
}
ALLOCATES = {"empty", "zeros", "ones", "full", "empty_like", "zeros_like", "ones_like", "full_like", "new_empty"}
ALLOCATES |= {
    "new_zeros",
    "new_full",
    "empty_strided",
    "new_empty_strided",
    "clone",
    "arange",
    "tensor",
    "scalar_tensor",
}
HANDS_OVER = {"numpy", "__array__", "tolist"}  # ways out of torch to another CPU library


class Fault(NamedTuple):
    """A check that failed, by its name, and what was seen."""

    check: str
    evidence: str


class Attestation(TorchDispatchMode):
    """Records which ATen operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler at the first call: two seconds of each process

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(func._schema.name.split("::")[-1])
        return func(*args, **(kwargs or {}))


class Handovers(TorchFunctionMode):
    """Records tensors that are handed to another library."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in HANDS_OVER:
            self.called.append(name)
        return func(*args, **(kwargs or {}))


def attested(call: Callable[[], object]) -> tuple[object, list[str]]:
    with Handovers() as handovers, Attestation() as attestation:
        returned = call()
    return returned, [*attestation.called, *(f"Tensor.{name}" for name in handovers.called)]


def judge_calls(variant: Variant, called: list[str]) -> Fault | None:
    """Own code may only make views; a variant that pins a kernel (KERNELS) must have run it."""
    if variant.own_code:
        allocated = sorted({name for name in called if name in ALLOCATES})
        computed = sorted({name for name in called if name not in ALLOWED and name not in ALLOCATES})
        if computed:
            return Fault("library", f"says it is its own code, yet called {', '.join(computed)}")
        if allocated:
            return Fault("allocates", f"allocated inside the call: {', '.join(allocated)}")
    elif variant.kernels and not any(fnmatch.fnmatch(c, k) for c in called for k in variant.kernels):
        return Fault("library", f"none of {', '.join(variant.kernels)} ran, but {', '.join(sorted(set(called)))}")
    return None


def judge_kernels(variant: Variant, names: list[str], allocated: int) -> Fault | None:
    """Own code runs its own kernels, in memory that it was given."""
    if not variant.own_code:
        return None
    if alien := ran.foreign(variant, names):
        return Fault("library", f"says it is its own code, yet ran {', '.join(alien)}")
    if allocated:
        return Fault("allocates", f"allocated {allocated} bytes inside the call")
    return None
