"""Headers that NVRTC does not bring and published sources include: where the toolkit's are, and small stand-ins.

A header of the host's (stdio.h, vector, cublas_v2.h, torch/types.h) is empty: what needs it is the host's too, and is
not compiled. What kernels do need of the C library is in `PRELUDE`, which every build begins with.
"""

import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from kernels import Unavailable


def _words(text: str) -> list[str]:
    return text.split()


PRELUDE_NAME = "layerbench_prelude.h"
PRELUDE = """#pragma once
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t; typedef long long intptr_t; typedef unsigned long long uintptr_t;
typedef unsigned char uchar; typedef unsigned short ushort; typedef unsigned int uint; typedef unsigned long ulong;
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef HUGE_VALF
#define HUGE_VALF INFINITY
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-7f
#define DBL_MAX 1.7976931348623158e+308
#define DBL_MIN 2.2250738585072014e-308
#define DBL_EPSILON 2.2204460492503131e-16
#define SCHAR_MAX 127
#define UCHAR_MAX 255
#define SHRT_MAX 32767
#define USHRT_MAX 65535
#define INT_MAX 2147483647
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 4294967295u
#define LLONG_MAX 9223372036854775807ll
#define LLONG_MIN (-LLONG_MAX - 1)
#define ULLONG_MAX 18446744073709551615ull
#define INT8_MAX 127
#define INT16_MAX 32767
#define INT32_MAX INT_MAX
#define INT32_MIN INT_MIN
#define UINT8_MAX 255
#define UINT16_MAX 65535
#define UINT32_MAX UINT_MAX
#define INT64_MAX LLONG_MAX
#define INT64_MIN LLONG_MIN
#define UINT64_MAX ULLONG_MAX
#ifndef M_PI
#define M_E 2.7182818284590452354
#define M_LOG2E 1.4426950408889634074
#define M_LOG10E 0.43429448190325182765
#define M_LN2 0.69314718055994530942
#define M_LN10 2.30258509299404568402
#define M_PI 3.14159265358979323846
#define M_PI_2 1.57079632679489661923
#define M_PI_4 0.78539816339744830962
#define M_1_PI 0.31830988618379067154
#define M_2_PI 0.63661977236758134308
#define M_2_SQRTPI 1.12837916709551257390
#define M_SQRT2 1.41421356237309504880
#define M_SQRT1_2 0.70710678118654752440
#endif
"""
ASSERT = """#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) ((condition) ? (void)0 : __trap())
#endif
"""
DRIVER = """#pragma once
#ifndef __cuda_cuda_h__
#define __cuda_cuda_h__
typedef struct alignas(64) CUtensorMap_st { unsigned long long opaque[16]; } CUtensorMap;
typedef unsigned long long CUdeviceptr;
typedef int CUresult;
typedef int CUdevice;
typedef struct CUstream_st* CUstream;
enum CUtensorMapDataType {
    CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_UINT16, CU_TENSOR_MAP_DATA_TYPE_UINT32,
    CU_TENSOR_MAP_DATA_TYPE_INT32, CU_TENSOR_MAP_DATA_TYPE_UINT64, CU_TENSOR_MAP_DATA_TYPE_INT64,
    CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ, CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
    CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ
};
enum CUtensorMapInterleave {
    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_INTERLEAVE_16B, CU_TENSOR_MAP_INTERLEAVE_32B
};
enum CUtensorMapSwizzle {
    CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B
};
enum CUtensorMapL2promotion {
    CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
    CU_TENSOR_MAP_L2_PROMOTION_L2_256B
};
enum CUtensorMapFloatOOBfill {
    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
};
#endif
"""
NARROW = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"  # which the host's libraries bring along
SMALL = {
    # What NVRTC has by itself, or the prelude brings.
    **dict.fromkeys(
        _words(
            "stdint.h cstdint stddef.h cstddef float.h cfloat limits.h climits math.h cmath stdio.h cstdio"
            " stdlib.h cstdlib string.h cstring stdbool.h cstdbool inttypes.h cinttypes time.h ctime sys/types.h"
        ),
        "",
    ),
    "assert.h": ASSERT,
    "cassert": ASSERT,
    "cuda.h": DRIVER,
    "cudaTypedefs.h": DRIVER,
    # CUB refuses to be included whole by NVRTC; these are its parts for device code.
    "cub/cub.cuh": "\n".join(
        f"#include <cub/{part}.cuh>"
        for part in _words(
            "block/block_reduce block/block_scan block/block_load block/block_store block/block_exchange"
            " block/block_radix_sort warp/warp_reduce warp/warp_scan"
        )
    ),
}
# C++ headers of which device code uses the parts that libcu++ has.
OF_LIBCUPP = _words(
    "type_traits utility tuple array functional limits algorithm numeric complex initializer_list iterator cstdint"
)
HOST_ONLY = re.compile(
    r"thrust/|torch/|ATen/|c10/|pybind11/|nvtx3/|nvToolsExt|cublas|cudnn|cusparse|cusolver|cufft|curand\.h|nccl|mpi|nvml"
    r"|nvrtc\.h|cutensor\.h|cudaProfiler\.h|cuda_profiler_api\.h|omp\.h"
)
STD = re.compile(r"\bstd\s*::")
# Names of namespace std that device code has without asking for them, by the part of libcu++ that they are in: the C++
# library's headers bring each other along, and nvcc has the maths by itself.
NAMED = re.compile(r"\bstd\s*::\s*(\w+)")
PART_OF = {
    name: part
    for part, names in {
        "cmath": (
            "isinf isnan isfinite isnormal signbit copysign abs fabs fmod remainder fma fmax fmin fdim exp exp2 expm1"
            " log log2 log10 log1p logb pow sqrt cbrt hypot sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh"
            " atanh erf erfc tgamma lgamma ceil floor trunc round lround llround rint lrint nearbyint ldexp frexp modf"
            " nextafter lerp"
        ),
        "limits": "numeric_limits",
        "algorithm": "min max clamp",
        "utility": ("swap move forward declval pair make_pair integer_sequence index_sequence make_index_sequence"),
        "type_traits": (
            "integral_constant bool_constant true_type false_type conditional conditional_t enable_if enable_if_t"
            " is_same is_same_v is_integral is_integral_v is_floating_point is_floating_point_v remove_const"
            " remove_const_t remove_cv remove_cv_t remove_reference remove_reference_t remove_pointer remove_pointer_t"
            " decay decay_t void_t is_convertible is_convertible_v is_signed is_signed_v is_unsigned is_unsigned_v"
            " make_unsigned make_unsigned_t"
        ),
        "tuple": "tuple make_tuple get tie tuple_size tuple_element",
        "array": "array",
        "functional": "plus minus multiplies divides less greater equal_to not_equal_to less_equal greater_equal",
        "cstdint": "int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t uintptr_t intptr_t",
        "cstddef": "size_t ptrdiff_t nullptr_t byte",
    }.items()
    for name in _words(names)
}
IN_STD = "namespace std { using namespace cuda::std; }\n"
# CUB 3 (CUDA 13) has no operators of its own any more.
OLD_CUB = re.compile(r"\bcub\s*::\s*(?:Max|Min|Sum)\b")
CUB_OPERATORS = (
    "#include <cuda/functional>\n"
    "namespace cub { using Max = ::cuda::maximum<>; using Min = ::cuda::minimum<>; using Sum = ::cuda::std::plus<>; }\n"
)
ASKED = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:<([^>\n]+)>|"([^"\n]+)")', re.M)


@functools.cache
def folders() -> tuple[Path, ...]:
    """Where headers of the toolkit are, the folder with cuda_bf16.h first: of NVIDIA's packages (the runtime's, CCCL's
    with CUB and libcu++, the compiler's with mma.h), then of the toolkit at $CUDA_HOME. Raises Unavailable without any.
    """
    home = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "include"
    found = [*_of_package("nvidia-cuda-runtime", "cuda_bf16.h"), *_near("nvidia/cu13/include"), home]
    first = next((f for f in found if (f / "cuda_bf16.h").is_file()), None)
    if first is None:
        raise Unavailable("the CUDA headers are not installed (pip install 'layerbench[simulate]', or set CUDA_HOME)")
    every = [first, *found]
    every += [f / "cccl" for f in every]
    return tuple(dict.fromkeys(f for f in every if f.is_dir()))


def _of_package(package: str, header: str) -> list[Path]:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(f.locate())).parent for f in files if f.name == header]


def _near(folder: str) -> list[Path]:
    """In every place that packages are in; they share this folder."""
    return [Path(place) / folder for place in sys.path if place and (Path(place) / folder).is_dir()]


def present(header: str) -> bool:
    """Whether the toolkit's folders have it."""
    return any((folder / header).is_file() for folder in folders())


@functools.cache
def _has_cub_operators() -> bool:
    found = (folder / "cub/thread/thread_operators.cuh" for folder in folders())
    return any(re.search(r"\bMax\b", path.read_text(errors="replace")) for path in found if path.is_file())


def _prelude(texts: Iterable[str]) -> str:
    """What a build of these texts begins with: the C library's, and what they name of others' namespaces."""
    texts = list(texts)
    named = {PART_OF[name] for text in texts for name in NAMED.findall(text) if name in PART_OF}
    parts = sorted(part for part in named if present(f"cuda/std/{part}"))
    made = PRELUDE + "".join(f"#include <cuda/std/{part}>\n" for part in parts) + (IN_STD if parts else "")
    if any(OLD_CUB.search(text) for text in texts) and present("cuda/functional") and not _has_cub_operators():
        made += CUB_OPERATORS
    return made


def headers(texts: Iterable[str], beside: Iterable[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Stand-ins for what these texts include and no folder has, by name; and which of them are but empty.

    beside: names that the source's own headers were included by.
    """
    beside = set(beside)
    # the C library's are there in any case: a header of the toolkit's own may ask for one
    texts = list(texts)
    made, empty = {PRELUDE_NAME: _prelude(texts), **{name: text for name, text in SMALL.items() if not text}}, []
    made = {name: text for name, text in made.items() if name not in beside}
    standard = any(STD.search(text) for text in texts)  # libcu++ takes NVRTC some seconds
    for text in texts:
        for found in ASKED.finditer(text):
            name = found[1] or found[2]
            if name in made or name in beside:
                continue
            if name in SMALL:
                made[name] = SMALL[name] if not name.startswith("cub/") or present("cub/config.cuh") else ""
            elif HOST_ONLY.match(name):
                made[name] = NARROW
                empty.append(name)
            elif name in OF_LIBCUPP and not standard:
                made[name] = ""
            elif name in OF_LIBCUPP and present(f"cuda/std/{name}"):
                made[name] = f"#include <cuda/std/{name}>\n{IN_STD}"
            elif not present(name):
                made[name] = ""
                empty.append(name)
    return made, empty
