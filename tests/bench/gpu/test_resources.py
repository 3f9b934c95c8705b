"""bench.static: every kernel compiles for every architecture, and what it must catch it catches."""

import csv
import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import static
from bench.core.variants import discover
from bench.gpu import ARCHS, cubin, resources
from kernels.cuda.compiler import cuda_headers

GOOD_KERNEL = "if (i < n) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));"
# Two hundred values that are all needed at the end do not fit into 32 registers.
SPILLING = """
    float values[200];
    for (int j = 0; j < 200; j++) values[j] = to_float(a[(i * 7 + j * 13) % n]);
    float sum = 0;
    for (int j = 199; j >= 0; j--) sum = sum * values[j] + values[(j * 3) % 200];
    if (i < n) out[i] = from_float<T>(sum);
"""
TENSOR = """
    float d[4] = {0, 0, 0, 0};
    unsigned x[4] = {1, 2, 3, (unsigned)i}, y[2] = {5, 6};
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    if (i < n) out[i] = from_float<T>(d[0] + d[1] + d[2] + d[3] + to_float(a[i]) + to_float(b[i]));
"""


def write(folder: Path, body: str = GOOD_KERNEL, constants: str = "", bounds: str = "", block: str = "256") -> Path:
    home = folder / "cuda" / "residual"
    home.mkdir(parents=True)
    (home / "mine.cu").write_text(
        '#include "common/types.cuh"\n'
        f"template <typename T> __global__ void {bounds} mine(T* out, const T* a, const T* b, long long n) {{\n"
        f"    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;\n{body}\n}}\n"
    )
    (home / "mine.py").write_text(
        f'"""Adds."""\nfrom kernels.cuda import Kernel, blocks\n{constants}\nkernel = Kernel("mine.cu", "mine")\n'
        f"def forward(a, b, *, out):\n"
        f"    kernel(grid=blocks(out.numel(), 256), block={block})(out, a, b, out.numel())\n"
    )
    return folder


def run(folder: Path, capsys, *more: str) -> tuple[int, list[dict]]:
    code = static.main(["residual", "--only", "cuda.mine", "--kernels", str(folder), "--json", *more])
    return code, json.loads(capsys.readouterr().out)["kernels"]


def test_a_sound_kernel_passes_on_all_architectures(tmp_path, capsys):
    code, rows = run(write(tmp_path / "k"), capsys, "--out", str(tmp_path / "out"))
    assert code == 0
    assert [(r["arch"], r["dtype"]) for r in rows] == [(a, d) for a in ARCHS for d in resources.DTYPES]
    assert all(r["fault"] == "" and 0 < r["registers"] < 64 and r["occupancy"] == 1.0 for r in rows)
    with (tmp_path / "out" / "static.csv").open() as file:
        assert [r["kernel"] for r in csv.DictReader(file)] == [r["kernel"] for r in rows]


def test_an_undeclared_spill_is_a_fault_and_a_declared_one_is_not(tmp_path, capsys):
    tight = "__launch_bounds__(1024, 2)"  # 32 registers a thread
    one = ("--dtype", "fp32", "--arch", "sm_90a")
    code, rows = run(write(tmp_path / "a", SPILLING, bounds=tight), capsys, *one)
    assert code == 2 and all("SPILLS allows 0" in r["fault"] and r["spill_bytes"] > 0 for r in rows)
    for most, wrong in (("100000", 0), ('{"sm_90a": 100000}', 0), ('{"sm_80": 100000}', 2)):
        code, rows = run(write(tmp_path / f"b{wrong}{len(most)}", SPILLING, f"SPILLS = {most}", tight), capsys, *one)
        assert code == wrong and all(r["spill_bytes"] > 0 for r in rows)


def test_claimed_tensor_cores_must_be_in_the_machine_code(tmp_path, capsys):
    code, rows = run(write(tmp_path / "a", constants="TENSOR_CORES = True"), capsys, "--dtype", "bf16")
    assert code == 2 and any("no kernel has a tensor-core instruction" in r["fault"] for r in rows)
    code, rows = run(write(tmp_path / "b", TENSOR, "TENSOR_CORES = True"), capsys, "--dtype", "bf16")
    assert code == 0 and all(r["tensor_core_instructions"] > 0 for r in rows)


def test_a_compile_error_is_a_fault_with_the_compilers_line(tmp_path, capsys):
    code, rows = run(write(tmp_path, "out[i] = nothing;"), capsys, "--arch", "sm_90a")
    assert code == 2 and all("mine.cu(4): error" in r["fault"] for r in rows)


def test_a_block_that_fits_nowhere_is_a_fault(tmp_path, capsys):
    code, rows = run(write(tmp_path, block="2080"), capsys, "--arch", "sm_90a")
    assert code == 2 and all("no block fits" in r["fault"] for r in rows)


def test_a_variant_that_cannot_be_called_is_a_fault(tmp_path, capsys):
    folder = write(tmp_path)
    file = folder / "cuda" / "residual" / "mine.py"
    file.write_text(file.read_text().replace("(out, a, b, out.numel())", "(out, a, b)"))
    code, rows = run(folder, capsys, "--arch", "sm_90a")
    assert code == 2 and all("takes 4 arguments" in r["fault"] for r in rows)


@pytest.mark.parametrize(
    ("needs", "archs"),
    [("", ARCHS), ("sm90", ("sm_90a", "sm_100a")), ("sm90a", ("sm_90a",)), ("sm100", ("sm_100a",))],
)
def test_requires_chooses_the_architectures(tmp_path, needs, archs):
    folder = write(tmp_path, constants=f'REQUIRES = ("{needs}",)' if needs else "")
    (found,) = [v for v in discover((folder,)) if v.name == "cuda.mine"]
    assert tuple(a for a in ARCHS if resources.runs_on(found, a)) == archs


@pytest.mark.parametrize(
    ("backend", "archs", "dtypes"),
    [
        pytest.param("cuda", ARCHS, resources.DTYPES, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        # All tiles of all tables: nine such pairs would take an hour.
        pytest.param(
            "triton", ("sm_90a",), (*resources.DTYPES, "fp16"), marks=[pytest.mark.slow, pytest.mark.timeout(1800)]
        ),
        pytest.param("triton", ("sm_80", "sm_100a"), ("bf16",), marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_every_kernel_of_this_repository_is_sound(backend, archs, dtypes):
    """Compile errors, undeclared spills and claims without substance, for all kernels of a backend; for one
    architecture and dtype without the naive ones, as they are proved (tests/kernels/test_variants.py)."""
    quick = len(archs) == len(dtypes) == 1
    variants = [v for v in discover() if v.backend == backend and not (quick and v.stem == "naive")]
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed (pip install 'layerbench[simulate]')")
    rows = resources.compile_all(variants, list(archs), list(dtypes))
    assert {r.layer for r in rows} == {v.layer for v in variants}
    assert not [(r.layer, r.variant, r.kernel, r.arch, r.fault) for r in rows if r.fault]


def test_the_other_models_calls_are_compiled_too_and_options_where_they_are_wanted():
    of = {(v.layer, v.name): v for v in discover()}
    attention = of["attention", "triton.flash"]
    plain = [c.shape for c in resources.other_cases(attention, "bf16", with_options=False)]
    assert {48, 128} <= {s["HS"] for s in plain} and any(s["NKV"] < s["NH"] for s in plain)
    assert not any("window" in s for s in plain)
    more = [c.shape for c in resources.other_cases(attention, "bf16", with_options=True)]
    windows = [s for s in more if "window" in s]
    assert len(more) == len(plain) + len(windows) and all(0 < s["window"] < s["T"] for s in windows)
    timed = [c.shape for c in resources.step_cases(attention, "bf16")]
    assert {s["HS"] for s in windows} == {s["HS"] for s in (*plain, *timed)}
    assert not list(resources.other_cases(of["adamw", "triton.chunks"], "bf16", with_options=True)), "lists of tensors"


TRITON = '''"""Adds."""
import triton
import triton.language as tl
from kernels.triton.tuning import Tiles
TENSOR_CORES = {tensor_cores}
TILES = Tiles(half={table}, fp32={table})

@triton.jit
def mine(out, a, b, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(a + i, mask=i < N) + tl.load(b + i, mask=i < N)
    if BLOCK == 512:
        x = tl.reshape(total, (16, 32)).to(tl.bfloat16)
        total = tl.reshape(tl.dot(x, tl.trans(x)).to(out.dtype.element_ty), (256,))
        i = tl.program_id(0) * BLOCK + tl.arange(0, 256)
    tl.store(out + i, total, mask=i < N)

def forward(a, b, *, out):
    tiles = TILES.at(out.dtype, out.numel())
    mine[(triton.cdiv(out.numel(), tiles["BLOCK"]),)](out, a, b, out.numel(), **tiles)
'''


def run_triton(folder: Path, capsys, table: str, tensor_cores: bool = False, *more: str) -> tuple[int, list[dict]]:
    home = folder / "triton" / "residual"
    home.mkdir(parents=True)
    (home / "mine.py").write_text(TRITON.replace("{table}", table).replace("{tensor_cores}", str(tensor_cores)))
    code = static.main(["residual", "--only", "triton.mine", "--kernels", str(folder), "--json", *more])
    return code, json.loads(capsys.readouterr().out)["kernels"]


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed (pip install 'layerbench[simulate]')")
class TestTriton:
    def test_every_configuration_of_an_architecture_is_compiled(self, tmp_path, capsys):
        table = "{80: [dict(BLOCK=256)], 90: [dict(BLOCK=1024), dict(BLOCK=2048, num_warps=8)]}"
        newer = [("", 128), ("TILES BLOCK=2048 num_warps=8", 256)]
        rows = []
        for dtype, archs in (("bf16", ARCHS), ("fp32", ARCHS[:1])):
            asked = ("--dtype", dtype, "--arch", ",".join(archs))
            code, more = run_triton(tmp_path / dtype, capsys, table, False, *asked)
            assert code == 0
            found = [(r["arch"], r["dtype"], r["configuration"], r["threads"]) for r in more]
            assert found == [("sm_80", dtype, "", 128), *((a, dtype, *rest) for a in archs[1:] for rest in newer)]
            rows += more
        assert all(r["registers"] > 0 and r["occupancy"] > 0 and r["kernel"].startswith("mine<") for r in rows)

    def test_tensor_cores_are_looked_for(self, tmp_path, capsys):
        code, rows = run_triton(tmp_path / "a", capsys, "{80: [dict(BLOCK=512)]}", True, "--dtype", "bf16")
        assert code == 0 and all(r["tensor_core_instructions"] > 0 for r in rows) and len(rows) == len(ARCHS)
        one = ("--dtype", "bf16", "--arch", "sm_90a")
        code, rows = run_triton(tmp_path / "b", capsys, "{80: [dict(BLOCK=1024)]}", True, *one)
        assert code == 2 and any("no kernel has a tensor-core instruction" in r["fault"] for r in rows)

    def test_a_configuration_that_does_not_compile_is_a_fault(self, tmp_path, capsys):
        table = "{80: [dict(BLOCK=256), dict(BLOCK=255)]}"
        code, rows = run_triton(tmp_path, capsys, table, False, "--arch", "sm_90a", "--dtype", "bf16")
        assert code == 2 and "cannot be called" in rows[0]["fault"] and "power of 2" in rows[0]["fault"]

    @pytest.mark.parametrize("sizes", ["> 16 * 1024 * 768", "< 4 * 1024 * 128"])
    def test_a_spill_that_only_many_sequences_or_another_model_meet_is_a_fault(
        self, tmp_path, capsys, monkeypatch, sizes
    ):
        chosen = "TILES.at(out.dtype, out.numel())"
        spilling = f"dict(BLOCK=16384, num_warps=1) if out.numel() {sizes} else {chosen}"
        monkeypatch.setitem(globals(), "TRITON", TRITON.replace(chosen, spilling))
        one = ("--dtype", "fp32", "--arch", "sm_90a")
        code, rows = run_triton(tmp_path, capsys, "{80: [dict(BLOCK=256)]}", False, *one)
        assert code == 2 and not rows[0]["fault"] and "SPILLS allows 0" in rows[1]["fault"] and len(rows) == 2


ORACLE = r"""
#include <cstdio>
#include <initializer_list>
#include <cuda_occupancy.h>
int main() {
    const int archs[][4] = {{8, 0, 164, 64}, {8, 6, 100, 48}, {8, 9, 100, 48}, {9, 0, 228, 64}, {10, 0, 228, 64}};
    for (auto& a : archs)
        for (int threads : {32, 64, 96, 128, 256, 384, 512, 1024})
            for (int registers : {16, 24, 32, 40, 64, 65, 96, 128, 168, 255})
                for (int shared : {0, 1024, 5000, 16384, 49152, 70000, 101376, 166912, 232448}) {
                    cudaOccDeviceProp p{};
                    p.computeMajor = a[0], p.computeMinor = a[1];
                    p.maxThreadsPerBlock = 1024, p.maxThreadsPerMultiprocessor = a[3] * 32;
                    p.regsPerBlock = p.regsPerMultiprocessor = 65536, p.warpSize = 32;
                    p.sharedMemPerBlock = 49152, p.sharedMemPerMultiprocessor = a[2] * 1024;
                    p.numSms = 100, p.sharedMemPerBlockOptin = (a[2] - 1) * 1024, p.reservedSharedMemPerBlock = 1024;
                    cudaOccFuncAttributes f{};
                    f.maxThreadsPerBlock = 1024, f.numRegs = registers, f.sharedSizeBytes = 0;
                    f.partitionedGCConfig = PARTITIONED_GC_OFF, f.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
                    f.maxDynamicSharedSizeBytes = (a[2] - 1) * 1024;
                    cudaOccDeviceState s{};
                    s.cacheConfig = CACHE_PREFER_SHARED, s.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
                    cudaOccResult r{};
                    int failed = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &f, &s, threads, shared);
                    int blocks = failed ? 0 : r.activeBlocksPerMultiprocessor;
                    printf("sm_%d%d %d %d %d %d\n", a[0], a[1], threads, registers, shared, blocks);
                }
}
"""


def test_occupancy_is_nvidias(tmp_path):
    """Against cuda_occupancy.h, NVIDIA's own calculator, on a grid of cases."""
    (tmp_path / "oracle.cpp").write_text(ORACLE)
    binary = tmp_path / "oracle"
    subprocess.run(["g++", f"-I{cuda_headers()}", str(tmp_path / "oracle.cpp"), "-o", str(binary)], check=True)
    lines = subprocess.run([binary], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 5 * 8 * 10 * 9
    for line in lines:
        arch, *numbers = line.split()
        threads, registers, shared, blocks = map(int, numbers)
        assert cubin.blocks_per_multiprocessor(arch, threads, registers, shared) == blocks, line


def test_a_report_that_cannot_be_read_is_an_error(monkeypatch):
    monkeypatch.setattr(cubin, "disassemble", lambda _: "")
    with pytest.raises(ValueError, match="cannot be read"):
        cubin.resources(b"", "ptxas info : Compiling entry function 'f' for 'sm_90a'\nptxas info : nonsense\n")
