"""Launches as a driver is asked for them, without a card: the real launch paths over a library that writes down.

What should be asked for is known from the simulator's side of the launcher, whose arguments are encoded one by one and
checked: the packed ones must be the same bytes, where a plan is found too, and on tensors that lie elsewhere.
"""

import json
import os
import subprocess
import sys

import pytest

from bench.core.process import Process, Room
from tests import stand_in

pytestmark = pytest.mark.skipif(bool(reason := stand_in.missing()), reason=reason)

FEW = (
    *("adamw/cuda.shared/forward", "global_norm/cuda.shared/forward", "attention/cuda.shared/backward"),
    *("matmul/cuda.shared/backward", "residual_layernorm/cuda.naive/backward", "residual/triton.block/forward"),
    "adamw/triton.chunks/forward",
)
TENSOR_MAP = 128  # bytes that only the driver may make; the stand-in's begin with the address


def asked(*names: str) -> list[dict]:
    command = [sys.executable, "-m", "tests.stand_in.calls", *names]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: dict) -> None:
    assert "error" not in found, found["error"]
    for call in found["calls"]:
        counts = call["counts"]
        assert counts["refused"] == 0
        assert counts["synchronizations"] == counts["copies"], "for a table that is written once, and nothing else"
        assert counts["launches"] == len(call["asked"]) == len(call["wanted"]) > 0
        for launch, wanted in zip(call["asked"], call["wanted"], strict=True):
            where = f"{found['name']}: {launch['name']}"
            assert launch["stream"] == stand_in.STREAM and launch["captured"] == call["captured"], where
            assert wanted["name"].partition("<")[0] in launch["name"], where
            for geometry in ("grid", "block", "shared"):
                assert launch[geometry] == wanted[geometry], f"{where}: {geometry}"
            check_parameters(where, launch["parameters"], wanted["parameters"], wanted["tensors"])


def check_parameters(where: str, launch: list[str], wanted: list[str], tensors: list[list[int]]) -> None:
    assert len(launch) == len(wanted), where
    for i, (there, should, pointed) in enumerate(zip(launch, wanted, tensors, strict=True)):
        if len(there) == 2 * TENSOR_MAP and len(pointed) == 1:
            there, should = there[:16], pointed[0].to_bytes(8, "little").hex()
        assert there == should, f"{where}: parameter {i}"


def test_the_driver_is_asked_for_what_the_kernels_take():
    found = asked(*FEW)
    assert [f["name"] for f in found] == list(FEW)
    for each in found:
        check(each)
    for name, parameter in (("adamw/cuda.shared", 0), ("adamw/triton.chunks", 5)):
        lists = next(f for f in found if f["name"].startswith(name))
        one, other = (call["asked"][0]["parameters"][parameter] for call in lists["calls"])
        assert one != other, "the addresses are those of the call, not of the first"
        assert [call["counts"]["copies"] for call in lists["calls"]] == [0, int("triton" in name)]


@pytest.mark.slow
def test_every_variant_asks_for_what_its_kernels_take():
    from tests.stand_in.calls import everything

    found = asked()
    assert [f["name"] for f in found] == everything()
    for each in found:
        check(each)


class Code(Room):
    def run(self, code: str) -> None:
        exec(code, {"__name__": "__main__"})


def in_a_process(code: str) -> None:
    """Run code in a process of its own, which has the stand-in driver as `there`."""
    given = f"from tests import stand_in\nfrom kernels.cuda import gpu\nthere = stand_in.StandIn()\n{code}"
    with Process(Code, limit=120, environment={}, preload="kernels.cuda.gpu") as process:
        process.ask("run", code=given)


def test_asking_for_a_capability_makes_no_context():
    in_a_process("""
assert gpu.capability_of(0) == (9, 0) and gpu.arch_of(0) == "sm_90a" and gpu.name_of(0) == "Stand-in"
assert there.contexts() == 0
""")


STATIC, DYNAMIC = 32768, 32768  # bytes: more than 48 KiB together, but neither of them is


def test_static_shared_memory_counts_where_dynamic_is_asked_for(tmp_path):
    (tmp_path / "both.cu").write_text(f"""
extern __shared__ float dynamic[];
__global__ void both(float* out) {{
    __shared__ float fixed[{STATIC // 4}];
    fixed[threadIdx.x] = dynamic[threadIdx.x] = out[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = fixed[blockDim.x - 1 - threadIdx.x] + dynamic[blockDim.x - 1 - threadIdx.x];
}}
""")
    in_a_process(f"""
import pathlib, torch
__file__ = {str(tmp_path)!r}
from kernels.cuda import Kernel
there = stand_in.use()
kernel = Kernel("both.cu", "both")
kernel.source = pathlib.Path({str(tmp_path / "both.cu")!r})
out = torch.empty(128)
kernel(grid=1, block=128, shared=1024)(out)
assert there.counts()["attributes_set"] == 0
kernel(grid=1, block=128, shared={DYNAMIC})(out)
assert there.counts() | dict(launches=2, refused=0, attributes_set=1) == there.counts()
try:
    kernel(grid=1, block=128, shared=227 * 1024 - {STATIC} + 1)(out)
except gpu.LaunchError as error:
    assert "beside {STATIC} static" in str(error), error
    from bench.trial.room import Room
    assert Room.explain(error).status == "skipped", "another card may have it"
    assert Room.explain(gpu.LaunchError("both: CUDA_ERROR_INVALID_VALUE: invalid argument")).status == "error"
else:
    raise AssertionError("more than a block may have")
""")


def test_a_table_is_written_once_kept_for_graphs_and_again_where_an_address_or_a_size_changed():
    in_a_process("""
import ctypes, torch
there = stand_in.use()
from kernels.triton.lists import Lists
tensors = [torch.empty(n) for n in (5, 0, 33)]
lists = Lists(32)
read = lambda table: ctypes.string_at(table.address, len(table.words))
copies = lambda: there.counts()["copies"]
first = lists.table(tensors, numbers=[0.5, 1.0, 2.0])
assert copies() == 1 and read(first) == first.words and first.programs == 3
assert there.counts()["synchronizations"] == 1
assert lists.table([t.detach() for t in tensors], numbers=[0.5, 1.0, 2.0]).address == first.address and copies() == 1
for other in ([tensors[0][:4], *tensors[1:]], [tensors[0], tensors[1], torch.empty(33)]):
    table = lists.table(other, numbers=[0.5, 1.0, 2.0])
    assert table.address != first.address and table.words != first.words and read(table) == table.words
assert copies() == 3
assert lists.table(tensors, numbers=[0.5, 1.0, 3.0]).address != first.address and copies() == 4

# What a graph copies is there only when the graph is replayed: a call outside writes it again.
more = [torch.empty(64)]
there.capture(stand_in.STREAM)
captured = lists.table(more)
assert copies() == 5 and read(captured) != captured.words and there.counts()["synchronizations"] == 4
there.capture(None)
again = lists.table(more)
assert again.address == captured.address and copies() == 6 and read(again) == again.words

# The oldest make room, but none that a graph reads; and everything here has as many bytes.
import kernels.triton.lists as module
module.KEPT = 4
kept = [torch.empty(64) for _ in range(8)]
taken = [lists.table([t]).address for t in kept]
assert captured.address not in taken and len(lists.kept) <= 7
assert read(lists.table([kept[-1]])) == lists.table([kept[-1]]).words
""")


def test_what_a_kernel_cannot_take_is_refused_after_a_plan_was_made_too(tmp_path):
    (tmp_path / "add.cu").write_text("""
#include "common/many.cuh"
template <typename T>
__global__ void add(T* out, const __grid_constant__ Many<const T*, 2> terms, int n, float factor) {
    if (threadIdx.x < n) out[threadIdx.x] = (terms[0][threadIdx.x] + terms[1][threadIdx.x]) * factor;
}
""")
    in_a_process(f"""
import pathlib, torch
__file__ = {str(tmp_path)!r}
from kernels.cuda import Kernel
there = stand_in.use()
kernel = Kernel("add.cu", "add")
kernel.source = pathlib.Path({str(tmp_path / "add.cu")!r})
a, b, out = (torch.empty(8, 8) for _ in range(3))
call = kernel(grid=1, block=64)
for _ in range(2):
    call(out, [a, b], 8, 0.5)
def refused(kind, words, *args):
    try:
        call(*args)
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
    assert there.counts()["launches"] == 2, words
refused(ValueError, "does not fit into int", out, [a, b], 1 << 31, 0.5)
refused(TypeError, "is int, not 8.0", out, [a, b], 8.0, 0.5)
refused(ValueError, "not contiguous", out.t(), [a, b], 8, 0.5)
refused(ValueError, "not contiguous", out, [a, b.t()], 8, 0.5)
refused(TypeError, "both are T", out, [a, b.to(torch.bfloat16)], 8, 0.5)
refused(TypeError, "a tensor is wanted", out, [a, 3], 8, 0.5)
refused(TypeError, "a number is wanted", out, [a, b], None, 0.5)
refused(TypeError, "takes 4 arguments", out, [a, b], 8)
call(out, [a, None], 8, 1)
assert there.launched()[-1].parameters[1][8:] == bytes(8)
""")


def a_triton_kernel(folder) -> str:
    """A process's first lines: `scaled` of Triton's, `way`, the launches that went by Triton, and what is `there`."""
    (folder / "scaled_rows.py").write_text("""
import triton.language as tl
from kernels.triton.launching import jit

TERM = tl.constexpr(3)


@jit(do_not_specialize=["rows"])
def scaled(out, a, bias, n, rows, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(a + i, mask=i < n) * factor + TERM + rows
    if bias is not None:
        x += tl.load(bias + i, mask=i < n)
    tl.store(out + i, x, mask=i < n)
""")
    return f"""
import sys, torch
sys.path.insert(0, {str(folder)!r})
there = stand_in.use()
import scaled_rows
from scaled_rows import scaled
from triton import knobs
way, run = [], scaled.run
def triton_runs(*args, **options):
    way.append(args)
    return run(*args, **options)
scaled.run = triton_runs
out, a, b = (torch.empty(256) for _ in range(3))
"""


def test_a_triton_launch_of_a_known_kind_goes_to_the_driver_with_the_bytes_that_tritons_would_have(tmp_path):
    in_a_process(
        a_triton_kernel(tmp_path)
        + """
def launched(*args, grid=(2,), **constants):
    there.forget()
    scaled[grid](*args, BLOCK=128, **constants)
    (found,) = there.launched()
    return found
calls = [(out, a, None, n, rows, factor) for n, rows, factor in ((200, 7, 0.5), (72, 1, 2.0))]
calls.append((b, out, None, 8, 2**31 - 1, -1.0))
of_triton = []
for call in calls:
    scaled.planned.clear()
    of_triton.append(launched(*call))
assert len(way) == 3 and len({each.parameters for each in of_triton}) == 3
scaled.planned.clear()
launched(*calls[0]), way.clear()
assert [launched(*call) for call in calls] == of_triton and len(way) == 1, "rows of 1 are a kind of their own"
assert launched(*calls[0], grid=(3, 2)).grid == (3, 2, 1) and len(way) == 1

before = there.counts()["launches"]
scaled[(0,)](*calls[0], BLOCK=128)
assert there.counts()["launches"] == before and len(way) == 1, "no programs are no launch, and no error"

# Another kind is Triton's, once: alignment, a bias, a number that is a constant, another option.
for other in ((out[1:], a, None, 8, 7, 0.5), (out, a, b, 8, 7, 0.5), (out, a, None, 1, 7, 0.5)):
    way.clear()
    assert launched(*other) == launched(*other) and len(way) == 1, other
way.clear()
assert launched(*calls[0], num_warps=8).block == (256, 1, 1) and len(way) == 1

# What Triton looks at in each launch is looked at.
way.clear()
knobs.runtime.launch_enter_hook.add(way.append)
launched(*calls[0])
assert len(way) == 2, "Triton, and the hook"
knobs.runtime.launch_enter_hook.remove(way.append)
way.clear()
there.device = -1
try:
    scaled[(1,)](*calls[0], BLOCK=128)
except Exception:
    pass
assert len(way) == 1, "a tensor on the CPU"
there.device = 0
before, scaled_rows.TERM = scaled_rows.TERM, scaled_rows.tl.constexpr(4)
try:
    scaled[(1,)](*calls[0], BLOCK=128)
except RuntimeError as error:
    assert "TERM has changed" in str(error), error
else:
    raise AssertionError("compiled with another constant")
"""
    )


def test_triton_tells_no_more_kinds_apart_than_are_told_here(tmp_path):
    in_a_process(
        a_triton_kernel(tmp_path)
        + """
from kernels.triton.launching import told
numbers = [0, 1, 2, 15, 16, 17, 33, 48, -1, -16, -17, 2**31 - 1, 2**31, 2**31 + 1, 2**31 + 16, 2**63 - 1, 2**63]
numbers += [-(2**31), -(2**31) - 1, -(2**31) - 16, True, False, 0.0, 1.0, 0.5, None]
tensors = [torch.empty(64, dtype=d)[n:] for d in (torch.float32, torch.bfloat16, torch.int64) for n in (0, 1, 2, 8)]
binder = scaled.device_caches[0][-1]
found = {}
for value in numbers + tensors:
    device, values, (kind,) = told((value,))
    triton = repr(binder(out, a, None, value, 2, 0.5, BLOCK=128)[1])
    assert found.setdefault(kind, triton) == triton, (value, kind)
assert 12 < len(found) < len(numbers), "not a kind for each value either"
"""
    )


def test_a_wrong_byte_is_seen():
    parameters = ["00" * 8, "07000000"]
    check_parameters("k", parameters, parameters, [[0], []])
    with pytest.raises(AssertionError, match="parameter 1"):
        check_parameters("k", parameters, ["00" * 8, "08000000"], [[0], []])
    with pytest.raises(AssertionError, match="parameter 0"):
        check_parameters("k", ["01" * TENSOR_MAP], ["00" * TENSOR_MAP], [[5]])


def one_kernel(folder) -> str:
    """A process's first lines: `kernel`, of one float a thread, `out` for it, and what is `there`."""
    file = folder / "one.cu"
    file.write_text("__global__ void one(float* out, float x) { out[threadIdx.x] = x; }")
    return f"""
import pathlib, torch
__file__ = {str(folder)!r}
from kernels.cuda import Kernel
there = stand_in.use()
kernel = Kernel("one.cu", "one")
kernel.source = pathlib.Path({str(file)!r})
out = torch.empty(128)
"""


def test_a_cooperative_launch_is_asked_for_as_one_and_refused_where_it_does_not_fit(tmp_path):
    in_a_process(
        one_kernel(tmp_path)
        + """
for cooperative in (True, False, True):
    kernel(grid=(6, 2), block=128, cooperative=cooperative)(out, 0.5)
found = there.launched()
assert [f.attributes for f in found] == [1000, 0, 1000], found
assert {(f.grid, f.block, f.parameters[1]) for f in found} == {((6, 2, 1), (128, 1, 1), b"\\0\\0\\0?")}, found
try:
    kernel(grid=132 * 16 + 1, block=128, cooperative=True)(out, 0.5)
except gpu.LaunchError as error:
    assert "(cooperative) with grid (2113, 1, 1)" in str(error), error
else:
    raise AssertionError("more blocks than fit at once")
"""
    )


def test_a_launch_in_clusters_is_asked_for_as_one(tmp_path):
    in_a_process(
        one_kernel(tmp_path)
        + """
how = (dict(cluster=2), dict(), dict(cluster=(3, 2)), dict(cluster=2, cooperative=True), dict(cluster=2))
for options in how:
    kernel(grid=(6, 2), block=128, shared=8, **options)(out, 0.5)
found = there.launched()
assert [f.attributes for f in found] == [1, 0, 1, 2, 1], found
alike = {(f.grid, f.block, f.shared, f.parameters[1]) for f in found}
assert alike == {((6, 2, 1), (128, 1, 1), 8, b"\\0\\0\\0?")}, found
before = there.counts()["attributes_set"]
kernel(grid=16, block=128, cluster=16)(out, 0.5)
assert there.counts()["attributes_set"] == before + 1, "more than 8 blocks must be allowed first"
try:
    kernel(grid=(6, 2), block=128, cluster=4)(out, 0.5)
except gpu.LaunchError as error:
    assert "grid (6, 2, 1) in clusters of (4, 1, 1)" in str(error), error
else:
    raise AssertionError("a grid that is no multiple of the cluster")
"""
    )
