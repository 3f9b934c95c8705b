"""Launch one of this folder's .cu kernels with plain arguments, in the simulator or on a card."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.simulate import run_ptx, tensor_map
from kernels.cuda import Argument, Build, Launch
from kernels.cuda.compiler import Binary, compile_source

HERE = Path(__file__).parent
ARCH = "sm_90a"


def on_a_card(test):
    """Mark a test that compares the simulator with a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")(test))


@dataclass(frozen=True)
class Map:
    """A tensor map that is made for the device where the kernel runs."""

    tensor: torch.Tensor
    box: tuple[int, ...]
    swizzle: int = 0
    const: bool = True


@dataclass(frozen=True)
class Wide:
    """An `unsigned long long`."""

    value: int


@cache
def compiled(source: Path, names: tuple[str, ...]) -> Binary:
    """All instances of a file at once: the compilers' start-up would dominate."""
    return compile_source(source, names, ARCH, "ptx")


def arguments_of(args: Sequence[Any]) -> list[Argument]:
    return [argument(f"argument {i}", a) for i, a in enumerate(args)]


def argument(name: str, value: Any) -> Argument:
    if isinstance(value, torch.Tensor):
        return Argument(name, struct.pack("<Q", value.data_ptr()), (value,))
    if isinstance(value, Map):
        if value.tensor.is_cuda:
            return Argument(name, driver_map(value), (value.tensor,), value.const)
        return tensor_map(value.tensor, value.box, value.swizzle, name=name, const=value.const)
    return Argument(name, struct.pack("<Q", value.value) if isinstance(value, Wide) else struct.pack("<i", value))


def launch(
    source: str | Path,
    names: tuple[str, ...],
    name: str,
    args: Sequence[Any],
    *,
    grid=(1, 1, 1),
    block=128,
    shared=0,
    seed=0,
) -> None:
    """Run kernel `name`, one of the file's instances `names`, where its tensors are."""
    path, arguments = HERE / source, arguments_of(args)
    if any(t.is_cuda for a in arguments for t in a.tensors):
        from kernels.cuda import gpu

        gpu.launch(Launch(Build(path, name), grid, (block, 1, 1), shared, tuple(arguments)))
        return
    binary = compiled(path, names)
    run_ptx(binary.code.decode(), binary.names[name], grid, (block, 1, 1), shared, arguments, seed=seed, name=name)


def driver_map(wanted: Map) -> bytes:
    """The 128 bytes that the CUDA driver makes of a map."""
    from cuda.bindings import driver

    types = {
        torch.bfloat16: driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        torch.float16: driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        torch.float32: driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        torch.int32: driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_INT32,
    }
    tensor, modes = wanted.tensor, driver.CUtensorMapSwizzle
    swizzles = {
        0: modes.CU_TENSOR_MAP_SWIZZLE_NONE,
        32: modes.CU_TENSOR_MAP_SWIZZLE_32B,
        64: modes.CU_TENSOR_MAP_SWIZZLE_64B,
        128: modes.CU_TENSOR_MAP_SWIZZLE_128B,
    }
    code, encoded = driver.cuTensorMapEncodeTiled(
        types[tensor.dtype],
        tensor.ndim,
        tensor.data_ptr(),
        [driver.cuuint64_t(s) for s in reversed(tensor.shape)],
        [driver.cuuint64_t(s * tensor.element_size()) for s in reversed(tensor.stride()[:-1])],
        [driver.cuuint32_t(b) for b in reversed(wanted.box)],
        [driver.cuuint32_t(1)] * tensor.ndim,
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzles[wanted.swizzle],
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if code != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"cuTensorMapEncodeTiled: {code}")
    return b"".join(int(word).to_bytes(8, "little") for word in encoded.opaque)
