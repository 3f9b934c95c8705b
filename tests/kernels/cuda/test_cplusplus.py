"""What a file of C++ declares, so far as what is left out of it depends on that."""

import pytest

from kernels.cuda import cplusplus
from kernels.cuda.compiler import compile_source

DECLARED = {
    "extern __shared__ __align__(1024) unsigned char a[];": ("a",),
    "static __device__ __align__(16) float a[4];": ("a",),
    "alignas(8) __device__ double a;": ("a",),
    "__device__ int a[3], b = 4;": ("a", "b"),
    "__managed__ int a;": ("a",),
    "template <int N> __device__ int a = N;": ("a",),
    "__device__ void (*a)(int);": ("a",),
    "__device__ int (*a[2])(int);": ("a",),
    "__device__ int z[3]; __device__ int (&a)[3] = z;": ("z", "a"),
    "__constant__ float a[2][2] = {{1, 2}, {3, 4}};": ("a",),
}


@pytest.mark.parametrize("text", DECLARED)
def test_a_variable_of_the_devices_is_known_by_its_name_and_stays(tmp_path, text):
    source = tmp_path / "kernel.cu"
    use = "a<2>" if "template" in text else "a"
    source.write_text(
        f"{text}\n__global__ void kernel() {{ auto& used = {use}; (void)used; }}\n"
        "int counted = 0;\nvoid launch() { kernel<<<1, 1>>>(); counted++; }\n"
    )
    unit = cplusplus.read(source)
    assert tuple(n for d in unit.declarations for n in d.names) == (*DECLARED[text], "kernel", "counted", "launch")
    texts = unit.without_host_code(("kernel",))
    assert texts and text in texts["kernel.cu"] and "launch" not in texts["kernel.cu"]
    compile_source(source, ("kernel",), "sm_90a")
