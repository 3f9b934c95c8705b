"""The CUDA launcher: what a kernel's parameter list says is checked before anything runs."""

import struct

import numpy as np
import pytest
import torch

import kernels
from kernels import cuda
from kernels.cuda import Strided, blocks
from kernels.cuda.attention import shared
from kernels.cuda.signature import Parameter, read_signature
from tests.kernels.cuda.conftest import kernel

SOURCE = """
#include "common/types.cuh"
#include "common/many.cuh"
// __global__ void scale(int not_this_one)
template <typename T, int WIDTH = 4>
__global__ void __launch_bounds__(128) scale(T* __restrict__ out, const T* x, const float* factor, long long n,
                                             int stride, float bias, bool on /* , a comment */) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_float<T>(on ? to_float(x[i * stride]) * *factor + bias * WIDTH : 0.0f);
}
template <typename T, int N>
__global__ void fill(const __grid_constant__ Many<T*, N> lists, const __grid_constant__ Many<float, N> values) {
    lists[blockIdx.x][threadIdx.x] = from_float<T>(values[blockIdx.x]);
}
extern "C" __global__ void plain(unsigned char* bytes) { bytes[0] = FILLER; }
__global__ void odd(const int& reference) {}
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "scale.cu").write_text(SOURCE)
    return tmp_path / "scale.cu"


def arguments(dtype=torch.float32, n=8):
    return [torch.empty(n, dtype=dtype), torch.ones(n, dtype=dtype), torch.tensor(2.0), n, 1, 0.5, True]


def test_a_signature_is_read_from_the_source(source):
    signature = read_signature(source, "scale")
    assert signature.template == ("T", "WIDTH")
    assert signature.parameters == (
        Parameter("out", "T", pointer=True),
        Parameter("x", "T", pointer=True, const=True),
        Parameter("factor", "float", pointer=True, const=True),
        Parameter("n", "long long"),
        Parameter("stride", "int"),
        Parameter("bias", "float"),
        Parameter("on", "bool"),
    )
    lists, values = read_signature(source, "fill").parameters
    assert lists == Parameter("lists", "T", pointer=True, many=True, grid_constant=True)
    assert values == Parameter("values", "float", many=True, grid_constant=True)
    assert read_signature(source, "plain").template == ()


def test_an_unknown_or_unreadable_kernel_is_named(source):
    with pytest.raises(LookupError, match=r"scale\.cu has no __global__ function scle"):
        read_signature(source, "scle")
    with pytest.raises(ValueError, match=r"odd has a parameter the launcher cannot read: 'const int& reference'"):
        read_signature(source, "odd")


def test_a_launch_carries_the_instance_geometry_and_bytes(source, launched):
    args = arguments(torch.bfloat16)
    kernel(source, "scale", WIDTH=4)(grid=(3, 2), block=128, shared=64, WIDTH=8, EXTRA=True)(*args)
    (launch,) = launched
    assert launch.build == cuda.Build(source, "scale<__nv_bfloat16, 8>", ("EXTRA=true",))
    assert (launch.grid, launch.block, launch.shared) == ((3, 2, 1), (128, 1, 1), 64)
    values = [a.value for a in launch.arguments]
    assert values[0] == struct.pack("<Q", args[0].data_ptr())
    assert values[3:] == [struct.pack("<q", 8), struct.pack("<i", 1), struct.pack("<f", 0.5), b"\x01"]
    assert [a.const for a in launch.arguments[:3]] == [False, True, True]


def test_lists_arrive_by_value(source, launched):
    lists = [torch.empty(4), torch.empty(2)]
    kernel(source, "fill")(grid=2, block=2, N=2)(lists, [1.5, 2.5])
    first, second = launched[0].arguments
    assert first.value == struct.pack("<QQ", *(t.data_ptr() for t in lists))
    assert second.value == struct.pack("<ff", 1.5, 2.5)
    assert first.tensors == tuple(lists)


def changed(position, value):
    def make():
        args = arguments()
        args[position] = value() if callable(value) else value
        return args

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: arguments()[:-1], r"takes 7 arguments \(out, x, factor, n, stride, bias, on\), got 6"),
        (changed(1, lambda: torch.ones(8, dtype=torch.bfloat16)), "out is torch.float32, but x is torch.bfloat16"),
        (changed(2, lambda: torch.ones(1, dtype=torch.float64)), "argument factor is float.: torch.float32 is wanted"),
        (changed(1, lambda: torch.ones(8, 2)[:, 0]), r"argument x is not contiguous \(strides \(2,\)\)"),
        (changed(1, 3), "argument x is a pointer: a tensor is wanted, not int"),
        (changed(4, lambda: torch.ones(1)), "argument stride is int: a number is wanted, not Tensor"),
        (changed(4, 2**31), "argument stride: 2147483648 does not fit into int"),
        (changed(4, 1.5), "argument stride is int, not 1.5"),
    ],
)
def test_wrong_arguments_are_refused_before_launch(source, launched, make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        kernel(source, "scale")(grid=1, block=8, WIDTH=1)(*make())
    assert not launched


def test_a_null_pointer_and_a_strided_tensor_can_be_passed(source, launched):
    args = arguments()
    args[1], args[2] = Strided(torch.ones(4, 4)[:, :2]), None
    kernel(source, "scale")(grid=1, block=8, WIDTH=1)(*args)
    assert launched[0].arguments[2].value == bytes(8)
    args[1] = Strided(torch.ones(4, 4)[:, 0])
    with pytest.raises(ValueError, match="not contiguous"):
        kernel(source, "scale")(grid=1, block=8, WIDTH=1)(*args)


def test_a_template_parameter_that_is_not_given_is_named(source, launched):
    with pytest.raises(TypeError, match=r"the template's N is not given"):
        kernel(source, "fill")(grid=1, block=2)([torch.empty(2)], [1.5])
    kernel(source, "scale")(grid=1, block=8)(*arguments())  # its WIDTH has a default
    assert launched[0].build.name == "scale<float>"


def test_too_many_bytes_of_parameters_are_refused(source, launched):
    with pytest.raises(ValueError, match="49152 bytes of parameters, a kernel takes 32764"):
        kernel(source, "fill")(grid=1, block=1, N=4096)([torch.empty(1)] * 4096, [0.0] * 4096)


def test_without_gpu_and_simulator_it_says_so(source, monkeypatch):
    monkeypatch.setattr(cuda, "_simulator", None)
    with pytest.raises(kernels.Unavailable, match="NVIDIA GPU, or the simulator"):
        kernel(source, "scale")(grid=1, block=8, WIDTH=1)(*arguments())


def test_a_compile_error_shows_the_compilers_message_with_file_and_line(source):
    from kernels.cuda.compiler import CompileError, compile_source

    source.write_text(SOURCE.replace("lists[blockIdx.x]", "nothing[blockIdx.x]"))
    line = SOURCE[: SOURCE.index("lists[blockIdx.x]")].count("\n") + 1
    with pytest.raises(CompileError) as error:
        compile_source(source, ("fill<float, 1>",), "sm_90a")
    assert f"scale.cu({line}): error" in str(error.value) and '"nothing" is undefined' in str(error.value)
    assert str(source.parent) not in str(error.value)


def test_builds_are_cached_by_source_header_and_define(source, monkeypatch, tmp_path):
    from kernels.cuda import compiler

    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    calls = []
    real = compiler._compile

    def counted(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(compiler, "_compile", counted)

    def build(value):
        return compiler.compile_source(source, ("plain",), "sm_90a", "ptx", (f"FILLER={value}",))

    first = build(1)
    assert build(1) == first and len(calls) == 1
    assert build(2) != first and len(calls) == 2
    source.write_text(source.read_text() + "// changed")
    assert build(1) == first and len(calls) == 3
    assert first.names == {"plain": "plain"} and b".visible .entry plain" in first.code


@pytest.mark.parametrize(
    "include", ['#include "helper.h"', "#include <helper.h>", "#include NAME", '#include "../other/helper.h"']
)
def test_a_build_is_as_new_as_what_it_includes(include, monkeypatch, tmp_path):
    from kernels.cuda import compiler

    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    helper = tmp_path / "other" / "helper.h" if "other" in include else tmp_path / "mine" / "helper.h"
    for folder in (tmp_path / "mine", tmp_path / "other"):
        folder.mkdir()
    source = tmp_path / "mine" / "answer.cu"
    source.write_text(
        f'#define NAME "helper.h"\n{include}\nextern "C" __global__ void f(int* out) {{ *out = ANSWER; }}\n'
    )

    def build(answer):
        helper.write_text(f"#define ANSWER {answer}\n")
        compiler._compile_unkept.cache_clear()  # another process
        return compiler.compile_source(source, ("f",), "sm_90a").code

    assert b"42" in build(42) and b"43" in build(43)


def test_a_compilation_without_messages_leaves_python_alone(source, monkeypatch, tmp_path):
    """An empty log is one byte, and Python shares its one-byte objects: NVRTC must not write into them."""
    from kernels.cuda.compiler import compile_source

    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "cache"))
    assert compile_source(source, ("plain",), "sm_90a", "ptx", ("FILLER=1",)).log == ""
    assert bytes([32])[0] == 32


@pytest.mark.parametrize("size", (2.5, (1.0, 2), (), (1, 1, 1, 1), "64", None, (1, None)))
def test_what_is_no_grid_is_said(source, launched, size):
    for geometry in ((size, 128), (1, size)):
        with pytest.raises(TypeError, match="one to three whole numbers, not"):
            kernel(source, "plain", FILLER=1)(*geometry)(torch.empty(1, dtype=torch.uint8))
    kernel(source, "plain", FILLER=1)([2, 3], (np.int64(32),))(torch.empty(1, dtype=torch.uint8))
    assert launched[-1].grid == (2, 3, 1) and launched[-1].block == (32, 1, 1)


def test_blocks_cover_the_work():
    assert [blocks(n, 128) for n in (0, 1, 128, 129)] == [1, 1, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_it_runs_on_the_current_stream_and_in_a_graph(source):
    x = torch.arange(1000, device="cuda", dtype=torch.float32)
    out, two = torch.zeros_like(x), torch.tensor(2.0, device="cuda")
    call = kernel(source, "scale")(grid=8, block=128, WIDTH=4)
    call(out, x, two, 1000, 1, 0.5, True)  # loads the kernel, which a capture must not
    assert torch.equal(out, x * 2 + 2)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side), torch.cuda.graph(graph, stream=side):
        call(out, x, two, 1000, 1, 0.5, True)
    x += 1
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, x * 2 + 2)
    from kernels.cuda.gpu import LaunchError

    with pytest.raises(LaunchError, match=r"scale<float, 4> with grid \(8, 1, 1\), block \(4096, 1, 1\)"):
        kernel(source, "scale")(grid=8, block=4096, WIDTH=4)(out, x, two, 1000, 1, 0.5, True)


@pytest.mark.parametrize(("arch", "widest"), [("sm_80", 112), ("sm_90a", 176)])
def test_attentions_tiles_are_refused_by_what_a_block_may_have_where_it_runs(arch, widest):
    """And not by the driver, who would call it an error, in a step's midst."""
    with cuda.targeting(arch):
        shared.tile_bytes(torch.empty(1, 1, 1, widest), 256, 128)
        with pytest.raises(kernels.Unavailable, match=f"head size {widest + 1} .* up to {widest} do"):
            shared.tile_bytes(torch.empty(1, 1, 1, widest + 1), 256, 128)
