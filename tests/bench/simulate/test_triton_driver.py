"""Triton's own runtime over our driver: it binds, specializes and compiles as on a card, and the simulator launches."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from bench import HOME, simulate
from bench.simulate import SimulationError

triton = pytest.importorskip("triton", reason="Triton is not installed (pip install 'layerbench[simulate]')")
import triton.language as tl  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

from bench.simulate import triton_driver  # noqa: E402
from bench.simulate.triton_driver import Launch, launching_with  # noqa: E402

BLOCK = 64


@pytest.fixture(autouse=True)
def installed():
    simulate.install("triton")


@triton.jit
def scale(out, x, factor, N, BLOCK: tl.constexpr, SQUARE: tl.constexpr = False):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < N).to(tl.float32) * factor
    if SQUARE:
        value = value * value
    tl.store(out + i, value.to(out.dtype.element_ty), mask=i < N)


def scaled(n: int, dtype=torch.float32, **options) -> tuple[torch.Tensor, torch.Tensor]:
    x, out = torch.randn(n).to(dtype), torch.full((n,), float("nan")).to(dtype)
    scale[(triton.cdiv(n, BLOCK),)](out, x, 0.5, n, BLOCK=BLOCK, **options)
    return out, x


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("n", (1, 16, 200))
def test_plain_triton_runs(n, dtype):
    out, x = scaled(n, dtype)
    assert torch.equal(out, x * 0.5)


def test_options_and_keywords_reach_the_kernel():
    out, x = scaled(100, SQUARE=True, num_warps=2)
    assert torch.equal(out, (x * 0.5).square())


@pytest.mark.parametrize("ctas", (2, 4))
def test_a_program_may_be_a_cluster(ctas):
    seen: list[Any] = []
    with launching_with(seen.append):
        scaled(1000, num_ctas=ctas)
    assert (seen[0].grid, seen[0].cluster) == ((16 * ctas, 1, 1), (ctas, 1, 1))
    out, x = scaled(1000, num_ctas=ctas)
    assert torch.equal(out, x * 0.5)


def test_what_is_tuned_takes_its_first_config_and_runs_once():
    configs = [triton.Config({"BLOCK": block}, num_warps=1) for block in (32, BLOCK)]
    tuned = triton.autotune(configs, key=["N"])(scale)
    seen: list[Any] = []
    x, out = torch.randn(100), torch.full((100,), float("nan"))
    grid = lambda meta: (triton.cdiv(100, meta["BLOCK"]),)  # noqa: E731
    with launching_with(seen.append):
        tuned[grid](out, x, 0.5, 100)
    assert [launch.grid for launch in seen] == [(4, 1, 1)]
    tuned[grid](out, x, 0.5, 100)
    assert torch.equal(out, x * 0.5)


def test_a_cooperative_launch_says_so():
    seen: list[Any] = []
    with launching_with(seen.append):
        scaled(100, launch_cooperative_grid=True)
        scaled(100)
    assert [launch.cooperative for launch in seen] == [True, False]


def test_a_write_behind_the_end_is_found_with_its_line():
    x, out = torch.randn(100), torch.empty(90)
    with pytest.raises(SimulationError, match=r"out-of-bounds write .* of `out`, test_triton_driver.py:\d+"):
        scale[(2,)](out, x, 1.0, 100, BLOCK=BLOCK)


def test_no_programs_launch_nothing():
    x = torch.randn(4)
    scale[(0,)](x, x, 2.0, 4, BLOCK=BLOCK)


@triton.jit
def choose(out, tensors, sizes, nothing, flag, big, number):
    which = tl.program_id(0)
    chosen = tensors[0]
    size = sizes[0]
    for i in tl.static_range(1, len(tensors)):
        chosen = tl.where(which == i, tensors[i], chosen)
        size = tl.where(which == i, sizes[i], size)
    value = tl.load(chosen) + size + number
    if nothing is None:
        value += 1000
    if flag:
        value += 2000
    tl.store(out + which, value + (big >> 40).to(tl.float32))


def test_tuples_none_flags_and_numbers():
    tensors = tuple(torch.full((1,), float(v)) for v in (1, 2, 3))
    out = torch.empty(3)
    choose[(3,)](out, tensors, (1, 16, 7), None, True, 5 << 40, 0.25)
    assert out.tolist() == [1 + 1 + 3005.25, 2 + 16 + 3005.25, 3 + 7 + 3005.25]


@triton.jit
def copy_by_descriptor(out, x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at = [tl.program_id(0) * ROWS, 0]
    out.store(at, x.load(at))


def copied_on(arch: str) -> tuple[torch.Tensor, torch.Tensor, Launch]:
    """40 rows of 64, in boxes of 16 rows, for an architecture."""
    launches: list[Launch] = []

    def keep_and_run(launch: Launch) -> None:
        launches.append(launch)
        triton_driver.run(launch)

    x, out = torch.randn(40, 64).bfloat16(), torch.full((40, 64), float("nan")).bfloat16()
    with launching_with(keep_and_run, arch):
        copy_by_descriptor[(3,)](*(TensorDescriptor.from_tensor(t, [16, 64]) for t in (out, x)), ROWS=16, COLUMNS=64)
    return out, x, launches[0]


def test_descriptors_are_tensor_maps():
    out, x, launch = copied_on("sm_90a")
    assert torch.equal(out, x), "the last box reaches over the end"
    assert "cp.async.bulk.tensor" in launch.build.ptx


def test_descriptors_without_tma_are_pointers():
    out, x, launch = copied_on("sm_80")
    assert torch.equal(out, x)
    assert "cp.async.bulk.tensor" not in launch.build.ptx


@pytest.mark.parametrize("arch", ("sm_80", "sm_90a", "sm_100a"))
def test_launches_can_be_written_down_for_an_architecture(arch):
    launches: list[Launch] = []
    with launching_with(launches.append, arch):
        out, _ = scaled(100, torch.bfloat16, num_warps=2)
    assert out.isnan().all(), "nothing ran"
    (launch,) = launches
    assert (launch.grid, launch.block) == ((2, 1, 1), (64, 1, 1))
    assert f".target {arch}" in launch.build.ptx
    assert launch.build.name == "scale" and ".entry scale(" in launch.build.ptx
    assert launch.build.label.startswith("scale<bf16, BLOCK=64, SQUARE=False, 2 warps")
    out, x = scaled(100, torch.bfloat16, num_warps=2)
    assert torch.equal(out, x * 0.5), "then as before: what was compiled under one driver launches under another"


def test_multiprocessors_and_capability_are_the_architectures():
    from kernels.triton import capability, multiprocessors

    found = []
    for arch in ("sm_80", "sm_90a", "sm_100a"):
        with launching_with(lambda _: None, arch):
            found.append((capability(), multiprocessors()))
    assert found == [(80, 108), (90, 132), (100, 148)]


@triton.jit
def copy_by_four(out, x, ROWS: tl.constexpr):
    at = [tl.program_id(2), tl.program_id(1), tl.program_id(0) * ROWS, 0]
    out.store(at, x.load(at))


def test_descriptors_of_four_axes_see_through_strides():
    """As attention's: heads of a packed tensor, the last tile over the end."""
    packed = torch.randn(2, 40, 3, 64).bfloat16()  # (B, T, heads, HS)
    x = packed[:, :, 1:]
    out = torch.full((2, 40, 2, 64), float("nan")).bfloat16()
    batch, row, head, _ = x.stride()
    maps = [TensorDescriptor(out, [2, 2, 40, 64], [40 * 128, 64, 128, 1], [1, 1, 16, 64])]
    maps.append(TensorDescriptor(x, [2, 2, 40, 64], [batch, head, row, 1], [1, 1, 16, 64]))
    copy_by_four[(3, 2, 2)](*maps, ROWS=16)
    assert torch.equal(out, x)


def test_what_ends_at_ptx_is_kept_where_no_cards_launch_looks(tmp_path, monkeypatch):
    """Up to Triton 3.6 the key is the same, and a launch would be handed a kernel without machine code."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kept"))
    with launching_with(lambda _: None, "sm_90a"):
        scaled(32, torch.bfloat16, num_warps=8)  # which no other test compiles
    assert list(tmp_path.rglob("*.ptx")) and not (tmp_path / "kept").exists()


PROGRAM = """
import sys
sys.path[:0] = [{folder!r}, {home!r}]
import torch, triton, triton.language as tl
import helper_of_a_test
from bench import simulate

simulate.install("triton")

@triton.jit
def fill(out):
    tl.store(out, helper_of_a_test.FACTOR)

out = torch.zeros(1)
fill[(1,)](out)
print(out.item())
"""


def test_a_build_is_as_new_as_what_it_takes_out_of_a_module(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(folder=str(tmp_path), home=str(HOME)))
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    for value in ("2.5", "3.5"):
        (tmp_path / "helper_of_a_test.py").write_text(
            f"import triton.language as tl\nFACTOR = tl.constexpr({value})  # {value * 9}\n"
        )
        done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == value, done.stderr
