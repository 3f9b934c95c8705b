"""What all rooms stand on: variants, a case and its memory, a process of its own, statistics, files."""

from typing import NamedTuple


class Backend(NamedTuple):
    """What kernels are written in."""

    own_code: bool  # its variants must not call ATen to compute
    gpu_code: bool  # its kernels want a GPU; where there is none the simulator runs them (bench/simulate)
    colour: str  # in charts


BACKENDS = {  # by the folder of kernels/, in the order in which variants are listed
    "torch": Backend(own_code=False, gpu_code=False, colour="#d97706"),
    "cpu": Backend(own_code=True, gpu_code=False, colour="#2f6fde"),
    "cuda": Backend(own_code=True, gpu_code=True, colour="#1a9850"),
    "triton": Backend(own_code=True, gpu_code=True, colour="#9b51e0"),
}
WORKING_DTYPES = ("fp32", "bf16", "fp16")  # of a case
# The order in which this project's kernels are explained and listed: each name is a technique, and takes over from
# those before. What is not named here is a library's, or somebody's newest, and stands behind them.
RUNGS = (
    *("naive", "simd", "shared", "block", "rows", "chunks", "online", "sorted", "tiled", "flash", "splitk", "vector"),
    *("mma", "persistent", "wgmma", "hopper"),
)
