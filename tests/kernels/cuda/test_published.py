"""Files as they are published: declarations of every kind, host code beside the kernels, headers that NVRTC lacks.

Kernels run in the simulator, so that a value that arrives wrong is seen.
"""

import struct
from collections.abc import Callable

import pytest
import torch

from bench import simulate
from kernels import cuda
from kernels.cuda import Argument, Loaded, as_int32, bf16_bits, compiler, cplusplus, standard
from kernels.cuda.compiler import CompileError, compile_source
from kernels.cuda.signature import arguments_of, read_signatures
from tests.kernels.cuda.conftest import kernel

KINDS = """
#include <stdio.h>
#include <stdint.h>
#include <cuda.h>
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include "mine.h"
#define KERNEL(name) __global__ void __launch_bounds__(64) name
namespace outer { namespace inner {
struct Pair { int first; double second; };
struct Options { short narrow; float scale; const float* bias; Pair pair; bool on; };
enum Mode { ADD, TAKE = 7 };
template <typename T> struct Wider { using type = float; };

template <typename scalar_t, int WIDTH = 2, bool NEGATE = false, typename Out = float>
KERNEL(kinds)(Out out[], const scalar_t *__restrict__ x, scalar_t s, size_t n, unsigned long long int big, half h,
              __nv_bfloat16 b, Options o, Mode mode, uint8_t small, const double d, real r, unsigned, int64_t = 3) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float value = (float)x[i] + (float)s + (big == (1ull << 40)) + __half2float(h) + __bfloat162float(b);
    value += o.narrow + o.scale + o.bias[i] + o.pair.first + (float)o.pair.second + (o.on ? 1000.0f : 0.0f);
    value += mode + small + (float)d + r + WIDTH;
    out[i] = NEGATE ? -value : value;
}
}}
#if 0
__global__ void gone(int not_this) {}
#endif
__global__ void over(float* out, int n) { if (threadIdx.x < n) out[threadIdx.x] = 1.0f; }
__global__ void over(double* out, int n) { if (threadIdx.x < n) out[threadIdx.x] = 2.0; }
void over(float* out, int n, int block) { over<<<1, block>>>(out, n); cudaCheck(cudaGetLastError()); }
template <typename T> __device__ T helper(T x);
template <> __device__ float helper<float>(float x) { return x < INFINITY && x < FLT_MAX ? x : 0.0f; }
__global__ void uses(float* out, const uint* index, const float4* four) {
    assert(index != nullptr);
    out[threadIdx.x] = helper(four[threadIdx.x].y) + index[threadIdx.x];
}
int main(int argc, char** argv) {
    std::vector<float> host(10);
    float* d_out; cudaCheck(cudaMalloc(&d_out, 10 * sizeof(float)));
    outer::inner::kinds<float><<<1, 10>>>(d_out, d_out, 1.0f, 10);
    printf("%f\\n", host[0]);
    return EXIT_SUCCESS;
}
"""
MINE = """
#pragma once
#include <vector>
#include <cublas_v2.h>
typedef float real;
static cublasHandle_t handle;
inline void cuda_check(cudaError_t error, const char* file, int line) { if (error) { exit(1); } }
#define cudaCheck(e) cuda_check(e, __FILE__, __LINE__)
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "mine.h").write_text(MINE)
    (tmp_path / "kinds.cu").write_text(KINDS)
    return tmp_path / "kinds.cu"


@pytest.fixture
def simulated():
    if reason := simulate.unavailable("cuda", ()):
        pytest.skip(reason)
    simulate.install("cuda")
    yield
    cuda.simulate_with(None)


def of_kinds(x, out):
    bias = torch.full((8,), 0.125)
    return out, x, 0.5, 8, 1 << 40, 1.5, 2.5, (3, 0.25, bias, 4, 5.0, True), 7, 200, 0.75, 8.0, 9, 10


@pytest.mark.parametrize(("dtype", "negate"), [(torch.float32, False), (torch.bfloat16, True)])
def test_every_kind_of_parameter_arrives(source, simulated, dtype, negate):
    x, out = torch.arange(8).to(dtype), torch.zeros(8)
    kernel(source, "kinds", NEGATE=negate)(grid=1, block=64)(*of_kinds(x, out))
    wanted = torch.arange(8) + 0.5 + 1 + 1.5 + 2.5 + 3 + 0.25 + 0.125 + 4 + 5 + 1000 + 7 + 200 + 0.75 + 8 + 2
    assert torch.equal(out, -wanted if negate else wanted)


def test_what_the_parameters_are_is_the_compilers_word(source, launched):
    args = of_kinds(torch.zeros(8), torch.zeros(8))
    kernel(source, "outer::inner::kinds")(grid=1, block=64)(*args)
    values = [a.value for a in launched[0].arguments]
    assert launched[0].build.name == "outer::inner::kinds<float, 2, false, float>"
    bias = args[7][2].data_ptr()
    assert values[7] == struct.pack("<hxxf", 3, 0.25) + struct.pack("<Q", bias) + struct.pack(
        "<ixxxxd?7x", 4, 5.0, True
    )
    assert values[5:7] == [struct.pack("<e", 1.5), struct.pack("<H", 0x4020)]
    assert [len(v) for v in values] == [8, 8, 4, 8, 8, 2, 2, 40, 4, 1, 8, 4, 4, 8]


@pytest.mark.parametrize(
    ("position", "value", "says"),
    [
        (7, (3, 0.25), r"is a struct: a tuple of 6 is wanted \(short, float, pointer, int, double, bool\)"),
        (7, Argument("o", bytes(8)), "is a struct of 40 bytes, not 8"),
        (2, torch.ones(1), "argument s is float: a number is wanted, not Tensor"),
        (9, 256, "argument small: 256 does not fit into unsigned char"),
        (3, -1, "argument n: -1 does not fit into unsigned long"),
        (13, 1.5, "argument #14 is long long, not 1.5"),
    ],
)
def test_a_wrong_value_is_refused_by_name(source, launched, position, value, says):
    args = list(of_kinds(torch.zeros(8), torch.zeros(8)))
    args[position] = value
    with pytest.raises((TypeError, ValueError), match=says):
        kernel(source, "kinds")(grid=1, block=64)(*args)
    assert not launched


def test_the_overload_that_takes_the_arguments_is_launched(source, simulated):
    one, two = torch.zeros(4), torch.zeros(4, dtype=torch.float64)
    launch = kernel(source, "over")(grid=1, block=32)
    launch(one, 4), launch(two, 3)
    assert one.tolist() == [1] * 4 and two.tolist() == [2, 2, 2, 0]
    with pytest.raises(TypeError, match=r"torch.float32 is wanted, not torch.int64"):
        launch(torch.zeros(4, dtype=torch.int64), 4)


def test_what_a_false_branch_has_is_not_there(source):
    with pytest.raises(LookupError, match=r"no __global__ function gone \(it has: kinds, over, uses\)"):
        read_signatures(source, "gone")


def test_specialisations_names_and_limits_are_there(source, simulated):
    out = torch.zeros(4)
    kernel(source, "uses")(grid=1, block=4)(out, torch.arange(4, dtype=torch.int32), torch.arange(16.0))
    assert out.tolist() == [1, 6, 11, 16]


def test_host_code_is_blank_and_lines_stay(source):
    unit = cplusplus.read(source)
    texts = unit.without_host_code(("uses",))
    assert texts is not None and set(texts) == {"kinds.cu", "mine.h"}
    assert "main" not in texts["kinds.cu"] and "<<<" not in texts["kinds.cu"] and "handle" not in texts["mine.h"]
    lines, before = texts["kinds.cu"].splitlines(), KINDS.splitlines()
    assert len(lines) == len(before) and lines[before.index("    assert(index != nullptr);")].strip()
    assert "helper<float>" in texts["kinds.cu"]  # or another function would be called


NAMED = """
#include <cub/block/block_reduce.cuh>
#include "mine.h"
__global__ void named(float* out, const float* x) {
    using Reduce = cub::BlockReduce<float, 32>;
    __shared__ typename Reduce::TempStorage kept;
    const float top = Reduce(kept).Reduce(x[threadIdx.x], cub::Max());
    __syncwarp();
    const float sum = Reduce(kept).Reduce(x[threadIdx.x], cub::Sum());
    if (threadIdx.x) return;
    out[0] = top, out[1] = sum, out[2] = clipped(x[1]);
    out[3] = std::isinf(x[0]) + 2 * std::isnan(x[0]) + 4 * std::isfinite(x[0]) + std::exp(x[1]) + std::pow(x[2], 2.0f);
    out[4] = std::is_same<float, std::conditional_t<true, float, int>>::value + std::abs(-static_cast<std::int64_t>(3));
}
"""
CLIPPED = """
template <typename T>
__device__ T clipped(T x) { return std::max(x, std::min(std::numeric_limits<T>::lowest(), T(1))); }
"""


def test_names_that_come_without_their_header_are_there(tmp_path, simulated):
    """nvcc has std's maths by itself and its other names by way of some header; CUB 2 had operators of its own. And a
    byte order mark is no part of a text."""
    (tmp_path / "named.cu").write_text("\ufeff" + NAMED)
    (tmp_path / "mine.h").write_text("\ufeff" + CLIPPED)
    x, out = torch.arange(32.0), torch.zeros(5)
    kernel(tmp_path / "named.cu", "named")(grid=1, block=32)(out, x)
    assert torch.allclose(out, torch.tensor([31, 496, 1, 4 + torch.e + 4, 4]))


def test_headers_of_headers_are_looked_for_from_the_source_too(tmp_path):
    """As NVRTC does, which has that folder by -I."""
    (tmp_path / "some" / "parts").mkdir(parents=True)
    (tmp_path / "outer.cu").write_text('#include "some/parts/first.h"\n__global__ void k(taken x) {}\nint main() {}\n')
    (tmp_path / "some/parts/first.h").write_text('#include "some/parts/second.h"\nvoid of_the_host();\n')
    (tmp_path / "some/parts/second.h").write_text("typedef float taken;\n")
    assert cplusplus.read(tmp_path / "outer.cu").beside == {"some/parts/first.h", "some/parts/second.h"}
    compile_source(tmp_path / "outer.cu", ("k",), "sm_90a")


def test_what_the_driver_calls_a_maps_properties_is_known(tmp_path):
    (tmp_path / "map.cu").write_text(
        "#include <cudaTypedefs.h>\ntemplate <typename T> struct Of;\ntemplate <> struct Of<float> {\n"
        "    static constexpr CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;\n};\n"
        "__global__ void k(int* out) { *out = Of<float>::type + CU_TENSOR_MAP_SWIZZLE_128B; }\n"
    )
    assert b", 10;" in compile_source(tmp_path / "map.cu", ("k",), "sm_90a").code


def test_who_names_nothing_of_std_has_no_more_to_read():
    made, _ = standard.headers(["__global__ void k(float* x) { x[0] = exp(max(x[0], 1.0f)); }"])
    assert made[standard.PRELUDE_NAME] == standard.PRELUDE


def test_files_without_host_code_are_compiled_as_they_are(tmp_path):
    (tmp_path / "plain.cu").write_text(
        "__device__ float f(float x) { return x; }\n__global__ void k(float* x) { *x = f(1); }"
    )
    assert cplusplus.read(tmp_path / "plain.cu").without_host_code(("k",)) is None


def test_a_kernel_that_a_macro_makes_is_found(tmp_path, simulated):
    (tmp_path / "made.cu").write_text(
        "#define BINARY(name, op) __global__ void name##_kernel(float* out, const float* a, const float* b) \\\n"
        "    { out[threadIdx.x] = a[threadIdx.x] op b[threadIdx.x]; }\n"
        "BINARY(add, +)\nBINARY(times, *)\n#undef BINARY\nint main() { std::cout << 1; }\n"
    )
    out = torch.zeros(2)
    kernel(tmp_path / "made.cu", "times_kernel")(grid=1, block=2)(
        out, torch.tensor([2.0, 3.0]), torch.tensor([4.0, 5.0])
    )
    assert out.tolist() == [8, 15]


def test_errors_come_before_warnings_and_missing_headers_are_named(tmp_path):
    text = "#include <cutlass/gemm.h>\n__global__ void k(float* x) { int unused; cutlass::gemm(x); }\n"
    (tmp_path / "bad.cu").write_text(text)
    with pytest.raises(CompileError) as error:
        compile_source(tmp_path / "bad.cu", ("k",), "sm_90a")
    said = str(error.value)
    assert said.index("error:") < said.index("taken as empty: cutlass/gemm.h") < said.index("warning")


def test_all_template_arguments_can_be_written_with_the_name(source, launched):
    assert arguments_of("a::k<float, Pair<int, 2>, 64>") == ["float", "Pair < int , 2 >", "64"]
    kernel(source, "kinds<float, 4, true>")(grid=1, block=64)(*of_kinds(torch.zeros(8), torch.zeros(8)))
    assert launched[0].build.name == "outer::inner::kinds<float, 4, true, float>"


# --- scalars in tensors, tokens in int64 ---

SCALARS = """
template <typename T>
__global__ void __launch_bounds__(64) update(T* p, float lr, float correction, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) p[i] = (T)((float)p[i] - lr / correction);
}
void update_all(float* p, float lr) { update<<<1, 64>>>(p, lr, 1.0f, 3); }
__global__ void lookup(float* out, const int* tokens, int n) {
    if (threadIdx.x < n) out[threadIdx.x] = tokens[threadIdx.x];
}
"""


@pytest.fixture
def scalars(tmp_path):
    (tmp_path / "scalars.cu").write_text(SCALARS)
    return tmp_path / "scalars.cu"


def test_a_scalar_in_a_tensor_is_read_when_the_kernel_runs(scalars, simulated):
    lr, step, launch = torch.tensor(3.0), torch.tensor(2.0), kernel(scalars, "update")(grid=1, block=64)
    for value, wanted in ((3.0, 10 - 3.0 / 0.75), (6.0, 10 - 6.0 / 0.75)):
        p = torch.full((5,), 10.0)
        lr.fill_(value)
        launch(p, Loaded(lr), Loaded(step, "1 - powf(0.5f, x)"), 4)
        assert p.tolist() == [wanted] * 4 + [10.0]


def test_a_loaded_scalar_keeps_the_bounds_of_the_launch(scalars):
    made = kernel(scalars, "update")
    launch = made._checked((1, 1, 1), (64, 1, 1), 0, {}, (torch.zeros(4), Loaded(torch.tensor(1.0)), 1.0, 4))
    build = launch.build
    assert build.name == "update_loading" and build.appended
    binary = compile_source(build.source, (build.name,), "sm_90a", "ptx", build.defines, build.appended)
    assert b".entry update_loading" in binary.code and b".maxntid 64" in binary.code


@pytest.mark.parametrize(
    ("position", "value", "says"),
    [
        (0, Loaded(torch.zeros(1)), "argument p is a pointer: only a scalar can be Loaded"),
        (1, Loaded(torch.zeros(2)), "Loaded takes a tensor of one element, not of 2"),
    ],
)
def test_what_cannot_be_loaded_is_refused(scalars, launched, position, value, says):
    args = [torch.zeros(4), 1.0, 1.0, 4]
    args[position] = value
    with pytest.raises((TypeError, ValueError), match=says):
        kernel(scalars, "update<float>")(grid=1, block=64)(*args)


def test_tokens_become_int32_in_the_workspace(scalars, simulated):
    tokens, out = torch.tensor([5, -1, 2**40]), torch.zeros(3)
    workspace = torch.zeros(16, dtype=torch.uint8)
    launch = kernel(scalars, "lookup")(grid=1, block=32)
    with pytest.raises(
        TypeError, match=r"torch.int32 is wanted, not torch.int64; as_int32\(tensor, workspace\) converts"
    ):
        launch(out, tokens, 3)
    launch(out, as_int32(tokens, workspace, 4), 3)
    assert out.tolist() == [5, -1, 2.0**31]  # as fp32 has it
    with pytest.raises(ValueError, match="3 elements need 20 bytes"):
        as_int32(tokens, workspace, 8)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1 / 3, 3.4e38, 1e-40, float("inf"), 1.00390625, 1.01171875])
def test_a_bf16_scalar_is_rounded_as_torch_does(value):
    assert bf16_bits(value) == torch.tensor(value).to(torch.bfloat16).view(torch.uint16).item()
    assert bf16_bits(float("nan")) & 0x7FFF > 0x7F80


def test_bf16_scalars_are_found_among_the_values_of_a_launch():
    from kernels.cuda.gpu import _places

    assert _places("QWfh2xWQ8sW4x?") == (1, 4, 7)
    assert _places("QQi") == ()


def test_a_signature_follows_its_headers(source):
    assert len(read_signatures(source, "kinds")[0].parameters) == 14
    (source.parent / "mine.h").write_text(MINE + "__global__ void fresh(int n) {}\n")
    assert len(read_signatures(source, "fresh")) == 1


# --- headers ---


@pytest.mark.parametrize(
    ("header", "body", "needs"),
    [
        ("cooperative_groups/reduce.h", "auto w = cooperative_groups::tiled_partition<32>("
         "cooperative_groups::this_thread_block()); x[0] = cooperative_groups::reduce(w, x[threadIdx.x],"
         " cooperative_groups::plus<float>());", "cuda/std/type_traits"),
        ("cub/cub.cuh", "using B = cub::BlockReduce<float, 32>; __shared__ B::TempStorage s; x[0] = B(s).Sum(x[1]);",
         "cub/config.cuh"),
        ("mma.h", "nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> f; *x = f.x[0];", "crt/mma.h"),
        ("cuda/barrier", "__shared__ cuda::barrier<cuda::thread_scope_block> b; x[0] = sizeof(b);", "cuda/barrier"),
        ("limits", "x[0] = std::numeric_limits<float>::max();", "cuda/std/limits"),
    ],
)  # fmt: skip
@pytest.mark.slow  # libcu++ takes NVRTC some seconds
def test_headers_of_the_toolkit_are_found(tmp_path, header, body, needs):
    if not standard.present(needs):
        pytest.skip(f"no {needs} here (nvidia-cuda-cccl, nvidia-cuda-crt)")
    first = "#include <cooperative_groups.h>\n" if header.startswith("cooperative") else ""
    (tmp_path / "h.cu").write_text(f"{first}#include <{header}>\n__global__ void k(float* x) {{ {body} }}\n")
    assert compile_source(tmp_path / "h.cu", ("k",), "sm_90a").code


def test_a_header_of_the_hosts_that_the_toolkit_has_is_not_read_and_those_of_c_are_always_there(tmp_path, monkeypatch):
    toolkit = tmp_path / "toolkit"
    for name, text in {
        "nvtx3/nvToolsExt.h": "#error the host's",
        "cuda_odd.h": "#include <stdint.h>\n#include <wchar_.h>\n",
        "wchar_.h": "#include <stddef.h>\ntypedef uint16_t odd_t;\n",
    }.items():
        (toolkit / name).parent.mkdir(parents=True, exist_ok=True)
        (toolkit / name).write_text(text)
    folders = (toolkit, *standard.folders())
    monkeypatch.setattr(standard, "folders", lambda: folders)
    (tmp_path / "n.cu").write_text(
        "#include <nvtx3/nvToolsExt.h>\n#include <cuda_odd.h>\n__global__ void k(odd_t* x) { x[0] = 1; }\n"
    )
    assert compile_source(tmp_path / "n.cu", ("k",), "sm_90a").code


def test_a_changed_stand_in_is_another_build(monkeypatch):
    compiler.version.cache_clear()
    try:
        before = compiler.version()
        compiler.version.cache_clear()
        monkeypatch.setattr(standard, "PRELUDE", standard.PRELUDE + "\n")
        monkeypatch.setattr(standard, "__file__", cplusplus.__file__)
        assert compiler.version() != before
    finally:
        compiler.version.cache_clear()


GRID = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
__global__ void mirrored(float* out, const float* x) {
    cg::grid_group grid = cg::this_grid();
    out[grid.thread_rank()] = x[grid.thread_rank()];
    grid.sync();
    float other = out[grid.size() - 1 - grid.thread_rank()];
    grid.sync();
    out[grid.thread_rank()] = other;
}
"""


def test_blocks_wait_for_each_other_in_a_cooperative_launch_and_in_no_other(tmp_path, simulated):
    (tmp_path / "grid.cu").write_text(GRID)
    x, out = torch.arange(256.0), torch.zeros(256)
    mirrored = kernel(tmp_path / "grid.cu", "mirrored")
    mirrored(grid=4, block=64, cooperative=True)(out, x)
    assert torch.equal(out, x.flip(0))
    with pytest.raises(simulate.SimulationError, match="trap"):
        mirrored(grid=4, block=64)(out, x)
    with pytest.raises(simulate.SimulationError, match="a cooperative launch of 5000 blocks; at most"):
        mirrored(grid=5000, block=64, cooperative=True)(out, x)


CLUSTER = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
__global__ void swapped(float* out, const float* x) {
    __shared__ float mine[64];
    cg::cluster_group cluster = cg::this_cluster();
    mine[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    cluster.sync();
    unsigned other = cluster.num_blocks() - 1 - cluster.block_rank();
    out[blockIdx.x * 64 + threadIdx.x] = cluster.map_shared_rank(mine, other)[threadIdx.x];
    cluster.sync();
}
"""


def test_the_launch_says_how_many_blocks_a_cluster_has(tmp_path, simulated):
    (tmp_path / "cluster.cu").write_text(CLUSTER)
    x, out = torch.arange(256.0), torch.zeros(256)
    swapped = kernel(tmp_path / "cluster.cu", "swapped")
    for size in (1, 2, 4):
        swapped(grid=4, block=64, cluster=size)(out, x)
        assert torch.equal(out.view(-1, size, 64), x.view(-1, size, 64).flip(1)), size
    with pytest.raises(simulate.SimulationError, match="cluster"):
        swapped(grid=4, block=64, cluster=3)(out, x)


def test_nothing_is_loaded_beside_a_grid_constant_parameter(tmp_path, launched):
    (tmp_path / "fixed.cu").write_text(
        "#define HELD const __grid_constant__\n"
        "__global__ void fixed(float* out, float scale, HELD float4 four) { out[0] = scale * four.x; }"
    )
    with pytest.raises(TypeError, match="nothing can be Loaded where a parameter, four, is __grid_constant__"):
        kernel(tmp_path / "fixed.cu", "fixed")(grid=1, block=1)(torch.zeros(1), Loaded(torch.ones(1)), (1.0,) * 4)
    assert not launched
    kernel(tmp_path / "fixed.cu", "fixed")(grid=1, block=1)(torch.zeros(1), 2.0, (1.0,) * 4)
    assert len(launched) == 1


def test_a_template_that_has_a_default_for_everything_needs_nothing(tmp_path, simulated):
    (tmp_path / "defaults.cu").write_text(
        "typedef float real;\ntemplate <bool TWICE = true, class S = int>\n"
        "__global__ void defaults(real* out, real x) { out[threadIdx.x] = TWICE ? 2 * x : x; }"
    )
    out = torch.zeros(4)
    kernel(tmp_path / "defaults.cu", "defaults")(grid=1, block=4)(out, 1.5)
    assert out.tolist() == [3.0] * 4
    kernel(tmp_path / "defaults.cu", "defaults")(grid=1, block=4, TWICE=False)(out, 1.5)
    assert out.tolist() == [1.5] * 4


@pytest.mark.parametrize(("dtype", "first", "count"), [(torch.float32, 0, 1000), (torch.bfloat16, 3, 37), (None, 5, 3)])
def test_zeros_are_written_where_they_belong_and_nowhere_else(simulated, dtype, first, count):
    whole = torch.full((2048,), 7, dtype=dtype or torch.uint8)
    assert cuda.zeroed(whole[first : first + count]).data_ptr() == whole[first:].data_ptr()
    wanted = torch.full_like(whole, 7)
    wanted[first : first + count] = 0
    assert torch.equal(whole, wanted)


def test_bytes_of_a_workspace_are_seen_as_what_the_kernel_wants(simulated):
    seen = cuda.zeroed(torch.full((64,), 7, dtype=torch.uint8), torch.float32)
    assert seen.dtype == torch.float32 and seen.tolist() == [0.0] * 16


def test_a_constant_of_the_source_is_told_and_what_is_none_is_refused(source):
    assert compiler.value_of(source, "outer::inner::TAKE + 1") == 8
    with pytest.raises(CompileError):
        compiler.value_of(source, "outer::inner::NOTHING")


def test_a_launcher_that_is_called_as_what_a_kernel_calls_is_left_out_with_its_instantiations(tmp_path):
    (tmp_path / "same.cu").write_text(
        "namespace other { template <class T> __device__ T reduce(T x) { return x + x; } }\n"
        "template <class T> __global__ void sums(T* out) { out[0] = other::reduce(out[0]); }\n"
        "__device__ int shifted(int x) { return 1 << (x << 2) >> 1; }\n"
        "template <class T> void reduce(int n, T* out) {\n    sums<T><<<n, 32>>>(out);\n    cudaGetLastError();\n}\n"
        "template void reduce<float>(int, float*);\ntemplate void reduce<double>(int, double*);\n"
        "__global__ void shifts(int* out) { out[0] = shifted(out[0]); }\n"
    )
    for name in ("sums<float>", "shifts"):
        assert compile_source(tmp_path / "same.cu", (name,), "sm_90a").code


NARROW_MATHS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "exp10": lambda x: 10**x,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "rcp": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "rint": torch.round,
    "floor": torch.floor,
}


@pytest.mark.parametrize(
    ("kind", "pair", "dtype"),
    [("__half", "__half2", torch.float16), ("__nv_bfloat16", "__nv_bfloat162", torch.bfloat16)],
)
def test_the_maths_of_narrow_floats_is_there_one_by_one_and_in_pairs(tmp_path, simulated, kind, pair, dtype):
    body = "".join(f"    out[{2 * i} * 32 + t] = h{name}(x[t]);\n" for i, name in enumerate(NARROW_MATHS))
    body += "".join(
        f"    if (t % 2 == 0) *({pair}*)(out + {2 * i + 1} * 32 + t) = h2{name}(*(const {pair}*)(x + t));\n"
        for i, name in enumerate(NARROW_MATHS)
    )
    (tmp_path / "narrow.cu").write_text(
        "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
        f"__global__ void maths({kind}* out, const {kind}* x) {{\n    int t = threadIdx.x;\n{body}}}\n"
    )
    x, out = torch.linspace(0.06, 2.9, 32).to(dtype), torch.full((len(NARROW_MATHS), 2, 32), torch.nan).to(dtype)
    kernel(tmp_path / "narrow.cu", "maths")(grid=1, block=32)(out, x)
    for (name, formula), found in zip(NARROW_MATHS.items(), out, strict=True):
        wanted = formula(x.double()).to(dtype).double()
        ulp = torch.finfo(dtype).eps * wanted.abs().clamp(min=1e-2)
        for each in found.double():
            assert ((each - wanted).abs() <= 2 * ulp).all(), name


def test_a_parameter_with_nothing_in_it_is_an_empty_tuple(tmp_path, simulated):
    (tmp_path / "tag.cu").write_text(
        "#include <type_traits>\nstruct One { char c; };\n"
        "template <bool ON> __global__ void tag(float* out, std::bool_constant<ON>, float x, One one) {\n"
        "    out[0] = ON ? x + one.c : 0; }\n"
    )
    out = torch.zeros(1)
    launch = kernel(tmp_path / "tag.cu", "tag")(grid=1, block=1, ON=True)
    launch(out, (), 1.5, (2,))
    assert out.tolist() == [3.5]
    with pytest.raises(TypeError, match=r"#2 is 1 bytes of a struct"):
        launch(out, True, 1.5, (2,))
    with pytest.raises(TypeError, match="one is a struct: a tuple of 1 is wanted"):
        launch(out, (), 1.5, ())


@pytest.mark.parametrize("name", ["fast.cu/kernels.cu", "plain/one.of.several.cu"])
def test_dots_in_a_name_mix_no_builds(tmp_path, simulated, name):
    path = tmp_path / name
    path.parent.mkdir()
    text = "template <int BY> __global__ void scale(float* x) { x[threadIdx.x] *= BY; }"
    path.write_text(text)
    for by in (2, 3):
        x = torch.ones(4)
        kernel(path, "scale", BY=by)(grid=1, block=4)(x)
        assert x.tolist() == [by] * 4
    path.write_text(text.replace("*= BY", "*= BY + 4"))
    x = torch.ones(4)
    kernel(path, "scale", BY=3)(grid=1, block=4)(x)
    assert x.tolist() == [7.0] * 4
