"""A load that races with a store is a note where nobody uses what it loads. Anything else stays a race."""

import pytest
import torch

from bench import simulate
from bench.simulate import SimulationError, take_notes
from tests.bench.simulate.kernels import marked_lines, names, run

triton = pytest.importorskip("triton", reason="Triton is not installed (pip install 'layerbench[simulate]')")
import triton.language as tl  # noqa: E402

SEEDS = range(3)
NOTED = ("in_place", "counts_as_well", "two_blocks")
FAULTS = tuple(name for name in names("unused.cu") if marked_lines("unused.cu", name))
GIVEN = torch.arange(64).float() - 20


@pytest.fixture(autouse=True)
def _no_old_notes():
    simulate.install("triton")
    take_notes()


def test_every_kernel_is_either_noted_or_a_fault():
    assert [*NOTED, *FAULTS] == names("unused.cu")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", NOTED)
def test_what_nobody_uses_is_a_note(kernel, seed):
    out, _, _ = run("unused.cu", kernel, n=64, seed=seed, grid=1 + (kernel == "two_blocks"), out=GIVEN.clone())
    assert torch.equal(out[:32], GIVEN[:32] * 2 + 1) and torch.equal(out[32:], GIVEN[32:])
    notes = take_notes()
    assert {note.kind for note in notes} == {"unused"}
    assert all("unused.cu:" in note.message and "used by nobody" in note.message for note in notes)


def test_a_launch_that_is_run_again_counts_once():
    """Its own variables, and what it counted of accesses, are of one run."""
    (first,) = {int(run("unused.cu", "counts_as_well", n=64, out=GIVEN.clone())[2][0])}
    assert int(run("unused.cu", "counts_as_well", n=64, out=GIVEN.clone())[2][0]) == first + 1
    with simulate.count() as counts:
        run("unused.cu", "in_place", n=64, out=GIVEN.clone())
    assert [(c.total.load_requests, c.total.store_requests) for c in counts] == [(2, 1)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", FAULTS)
def test_a_fault_stays_one(kernel, seed):
    given = GIVEN.clone()
    with pytest.raises(SimulationError) as caught:
        run("unused.cu", kernel, n=64, seed=seed, out=given)
    assert any(line in str(caught.value) for line in marked_lines("unused.cu", kernel))
    assert not {note.kind for note in take_notes()} & {"unused"}


@triton.jit
def softmax(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + tl.program_id(0) * n + i, mask=i < n, other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(x + tl.program_id(0) * n + i, (e / tl.sum(e, 0)).to(x.dtype.element_ty), mask=i < n)


@triton.jit
def reverse(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + (n - 1 - i), tl.load(x + i, mask=i < n), mask=i < n)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("n", (1, 7, 33))
def test_triton_in_place_on_a_tile_smaller_than_the_block(n, dtype):
    x = (GIVEN[:n] / 9).repeat(3, 1).to(dtype)
    right = x.double().softmax(1)
    for _ in SEEDS:
        found = x.clone()
        softmax[(3,)](found, n, triton.next_power_of_2(n))
        assert torch.allclose(found.double(), right, atol=1e-6 if dtype == torch.float32 else 1e-2)
    assert {note.kind for note in take_notes()} <= {"unused"}


@pytest.mark.parametrize("n", (7, 33))
def test_triton_that_reads_what_another_program_element_has_stored(n):
    with pytest.raises(SimulationError, match="race"):
        reverse[(1,)](GIVEN[:n].clone(), n, 64)
