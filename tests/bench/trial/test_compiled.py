"""Of a CUDA source what is launched is read, with all that it mentions, and not what its other kernels do."""

import textwrap

import pytest

from bench.core.variants import Variant
from bench.trial.source import foreign

SOURCE = """
    #include <cstdio>
    #include "stages.cuh"
    int main() { printf("%d", 1); }
    __global__ void staged(float* out) { stage(out); }
    __global__ void add(float* out, const float* a, const float* b, long long n) {
        long long i = blockIdx.x * 256LL + threadIdx.x;
        if (i < n) out[i] = a[i] + b[i];
    }
"""
HEADER = """
    #include <cstdio>
    inline void told() { printf("told"); }
    __device__ void stage(float* out) { out[0] = clock64(); }
    struct Staged { __device__ static void run(float* out) { stage(out); } };
"""
PYTHON = '''
    """Made up: staged is another kernel."""
    from kernels.cuda import Kernel, Loaded, blocks

    forward_kernel = Kernel("made_up.cu", "add")


    def forward(a, b, *, out):
        forward_kernel(grid=blocks(out.numel(), 256), block=256)(out, a, b, out.numel())
'''
CLOCK = ["stages.cuh line 4: clock64()"]


def told(root, python: str = PYTHON, source: str = SOURCE, header: str = HEADER) -> list[str]:
    path = root / "outside" / "cuda" / "residual" / "made_up.py"
    path.parent.mkdir(parents=True)
    for file, text in ((path, python), (path.with_suffix(".cu"), source), (path.parent / "stages.cuh", header)):
        file.write_text(textwrap.dedent(text))
    return foreign(Variant("residual", "cuda", "made_up", path, "Made up.", frozenset({"forward"})))


def test_the_clock_of_a_kernel_that_is_not_launched_is_nobodys(tmp_path):
    assert told(tmp_path) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("out[i] = a[i]", "stage(out), out[i] = a[i]"),
        ("long long i =", "\n#ifdef ON\nstage(out);\n#endif\nlong long i ="),  # kernel(…, ON=1)
        ("long long i =", "\n#define AT(x) x##age(out)\n#define ON stage\nlong long i ="),
        ("__global__ void add(", "template <void (*F)(float*) = stage> __global__ void add("),
    ],
    ids=["called", "in a branch", "by a macro", "by a default"],
)
def test_of_one_that_is_launched_it_is_named(tmp_path, before, after):
    assert before in SOURCE and told(tmp_path, source=SOURCE.replace(before, after)) == CLOCK


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"add")', '"staged")'),
        ("block=256)", 'block=256, Op="Staged")'),
        ("block=256)", "block=256, Op=NAMED)"),
        ("block=256)", "block=256, **MORE)"),
        ('"add")', '"ad" + "d")'),
        ("import Kernel,", "import Kernel as K, Kernel,"),
        ("    forward_kernel(", '    forward_kernel.__init__("made_up.cu", "sta" + "ged")\n        forward_kernel('),
        ("    forward_kernel(", '    type(forward_kernel)("made_up.cu", "sta" + "ged")\n        forward_kernel('),
        ("out, a, b, out.numel())", 'out, a, b, Loaded(out, "sta" + "ge(x)"))'),
    ],
)
def test_where_something_else_may_be_launched_all_is_read(tmp_path, before, after):
    found = told(tmp_path, PYTHON.replace(before, after, 1))
    assert before in PYTHON and set(CLOCK) <= set(found)


def test_what_a_launch_gives_a_macro_is_read(tmp_path):
    given = PYTHON.replace("block=256)", 'block=256, NOW="clock64()")')
    assert told(tmp_path, given) == ["line 9: clock64()"]
    refused = PYTHON.replace("    forward_kernel(", '    raise Unavailable("no clock64()")\n        forward_kernel(')
    (tmp_path / "more").mkdir()
    assert told(tmp_path / "more", refused) == []


def test_a_headers_own_functions_are_read_whoever_else_is_in_it(tmp_path):
    called = SOURCE.replace("out[i] = a[i]", "stage(out), out[i] = a[i]")
    assert told(tmp_path, source=called.replace("int main() {", "__device__ void f() {")) == CLOCK
