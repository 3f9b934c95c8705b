"""Triton kernels: plain `@triton.jit` functions, launched on torch tensors as `kernel[grid](…)`. What is launched is
`@jit` of launching.py, by which a known launch costs the host less.

    @jit
    def residual_kernel(out, a, b, N, BLOCK: tl.constexpr): …

    def forward(a, b, *, out):
        residual_kernel[(triton.cdiv(a.numel(), BLOCK),)](out, a, b, a.numel(), BLOCK=BLOCK)

On CUDA tensors this is Triton as everybody knows it; on CPU tensors the simulator runs what Triton compiled, where its
driver was put in (bench/simulate/triton_driver.py). Tile sizes that depend on the GPU are a table: tuning.py; so are
lists of tensors: lists.py. What Hopper's copy engine moves is described once: descriptors.py.
"""

import functools
import os
from typing import Any

from kernels import cache_dir

# Read by Triton when it compiles. What is set already is the user's choice.
os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir() / "triton"))
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default of Triton 3.6 to 3.9; 3.10 is to change it


def blocks(work: int, per_block: int) -> int:
    """How many blocks cover `work` items: triton.cdiv, without its microseconds."""
    return -(-work // per_block)


def power_of_2(least: int) -> int:
    """The smallest that is no less: triton.next_power_of_2, without its microseconds."""
    return 1 << max(0, least - 1).bit_length()


def multiprocessors() -> int:
    """Of the GPU that kernels are launched on (or simulated for)."""
    active = _driver().active
    return _facts(active, active.get_current_device())[0]


def capability() -> int:
    """Of the GPU that kernels are launched on (or simulated for): 80 is Ampere, 90 Hopper, 100 Blackwell."""
    active = _driver().active
    return _facts(active, active.get_current_device())[1]


@functools.cache
def _driver() -> Any:
    from triton.runtime import driver

    return driver


@functools.lru_cache(maxsize=16)
def _facts(driver: Any, device: int) -> tuple[int, int]:
    """(multiprocessors, capability), asked once a device: every launch of some variants wants to know."""
    count = driver.utils.get_device_properties(device)["multiprocessor_count"]
    return count, driver.get_current_target().arch


# An option of launches. Fused into the first addition of a sum over lanes, a product is rounded on one side of it only:
# lanes that hold the same sum then differ in its last bit, and where all of a warp's write it for the other warps, it
# is left to chance which of them counts.
UNFUSED = {"enable_fp_fusion": False}
