"""Layernorms as Triton's users write them: one row a program, the weights' gradients added up under locks."""

import pytest
import torch

from bench import simulate
from bench.simulate import SimulationError

triton = pytest.importorskip("triton", reason="Triton is not installed (pip install 'layerbench[simulate]')")
import triton.language as tl  # noqa: E402

EPS = 1e-5
ORDERS = 4  # launches; each has an order of threads and blocks of its own


@pytest.fixture(autouse=True)
def _installed():
    simulate.install("triton")
    simulate.take_notes()


@triton.jit
def normalize(Y, X, W, B, Mean, Rstd, N, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < N
    x = tl.load(X + row * N + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / N
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / N + eps)
    tl.store(Mean + row, mean)
    tl.store(Rstd + row, rstd)
    w = tl.load(W + column, mask=inside).to(tl.float32)
    b = tl.load(B + column, mask=inside).to(tl.float32)
    tl.store(Y + row * N + column, (centred * rstd * w + b).to(Y.dtype.element_ty), mask=inside)


@triton.jit
def scale_to_unit(Y, X, W, N, eps, BLOCK: tl.constexpr):
    """RMS norm, whose square is of what was loaded."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < N
    x = tl.load(X + row * N + column, mask=inside, other=0.0).to(tl.float32)
    rstd = 1 / tl.sqrt(tl.sum(x * x, axis=0) / N + eps)
    w = tl.load(W + column, mask=inside)
    tl.store(Y + row * N + column, (x * rstd * w).to(Y.dtype.element_ty), mask=inside)


@triton.jit
def backward_rows(
    DX, DW, DB, DY, X, W, Mean, Rstd, Locks, N, GROUPS: tl.constexpr, BLOCK: tl.constexpr, LOCKED: tl.constexpr
):  # fmt: skip
    """Gradients of the rows; those of the weights, per group of rows, under the group's lock."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < N
    x = tl.load(X + row * N + column, mask=inside, other=0.0)
    dy = tl.load(DY + row * N + column, mask=inside, other=0.0)
    w = tl.load(W + column, mask=inside, other=0.0)
    rstd = tl.load(Rstd + row)
    normal = tl.where(inside, (x - tl.load(Mean + row)) * rstd, 0.0)
    along = tl.sum(normal * dy * w, axis=0) / N
    mean = tl.sum(dy * w, axis=0) / N
    tl.store(DX + row * N + column, (dy * w - normal * along - mean) * rstd, mask=inside)
    lock = Locks + row % GROUPS
    at = row % GROUPS * N + column
    if LOCKED:
        while tl.atomic_cas(lock, 0, 1) == 1:
            pass
    count = lock + GROUPS
    dw = dy * normal
    db = dy
    if LOCKED:
        if tl.load(count) == 0:
            tl.atomic_xchg(count, 1)
        else:
            dw += tl.load(DW + at, mask=inside)
            db += tl.load(DB + at, mask=inside)
    else:
        dw += tl.load(DW + at, mask=inside)
        db += tl.load(DB + at, mask=inside)
    tl.store(DW + at, dw, mask=inside)
    tl.store(DB + at, db, mask=inside)
    if LOCKED:
        tl.debug_barrier()
        tl.atomic_xchg(lock, 0)


@triton.jit
def backward_columns(to, partial, GROUPS, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(0, GROUPS, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row[:, None] < GROUPS) & (column[None, :] < N)
        total += tl.load(partial + row[:, None] * N + column[None, :], mask=inside, other=0.0)
    tl.store(to + column, tl.sum(total, axis=0), mask=column < N)


@triton.jit
def cross(out, locks):
    """Each of two programs holds the lock that the other one wants."""
    me = tl.program_id(0)
    tl.atomic_xchg(locks + me, 1)
    tl.atomic_add(locks + 2, 1)
    while tl.atomic_add(locks + 2, 0) < 2:
        pass
    while tl.atomic_cas(locks + 1 - me, 0, 1) == 1:
        pass
    tl.store(out + me, 1.0)


def block(n: int) -> int:
    return triton.next_power_of_2(n)


def draw(rows: int, n: int, offset: float = 0.5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    x, dy = (torch.randn(rows, n, generator=generator) for _ in range(2))
    w, b = (torch.randn(n, generator=generator) for _ in range(2))
    return x + offset, dy, w, b


def normalized(x, w, b, warps: int, **options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, n = x.shape
    y, mean, rstd = torch.full_like(x, float("nan")), torch.empty(rows), torch.empty(rows)
    normalize[(rows,)](y, x, w, b, mean, rstd, n, EPS, BLOCK=block(n), num_warps=warps, **options)
    return y, mean, rstd


def close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(got.double(), wanted.double(), rtol=1e-4, atol=1e-4)


# Rows with one element a lane are where a product meets the first sum; in the last two, warps hold the same elements.
@pytest.mark.parametrize(("n", "warps"), [(100, 4), (512, 16), (768, 4), (64, 4), (33, 8)])
def test_a_row_a_program_is_right_and_no_race(n, warps):
    x, _, w, b = draw(5, n)
    for _ in range(ORDERS):
        y, _, _ = normalized(x, w, b, warps)
        assert close(y, torch.nn.functional.layer_norm(x, (n,), w, b, EPS))
        y = torch.empty_like(x)
        scale_to_unit[(5,)](y, x, w, n, EPS, BLOCK=block(n), num_warps=warps)
        assert close(y, torch.nn.functional.rms_norm(x, (n,), w, EPS))
    assert {note.kind for note in simulate.take_notes()} <= {"nondeterministic"}


def test_the_note_has_a_hint_and_the_hint_helps():
    x, _, w, b = draw(8, 512)
    for _ in range(ORDERS):
        normalized(x, w, b, 16)
    (note,) = simulate.take_notes()
    assert note.kernel == "normalize" and "test_triton_layernorm.py:" in note.message
    assert "enable_fp_fusion=False" in note.message
    for _ in range(ORDERS):
        normalized(x, w, b, 16, enable_fp_fusion=False)
    assert simulate.take_notes() == ()


def backward(x, dy, w, b, groups: int, warps: int, locked: bool = True) -> tuple[torch.Tensor, ...]:
    rows, n = x.shape
    _, mean, rstd = normalized(x, w, b, warps)
    locks, dx = torch.zeros(2 * groups, dtype=torch.int32), torch.full_like(x, float("nan"))
    partial_w, partial_b = torch.zeros(groups, n), torch.zeros(groups, n)
    options = {"GROUPS": groups, "BLOCK": block(n), "LOCKED": locked, "num_warps": warps}
    backward_rows[(rows,)](dx, partial_w, partial_b, dy, x, w, mean, rstd, locks, n, **options)
    dw, db = torch.empty(n), torch.empty(n)
    for to, partial in ((dw, partial_w), (db, partial_b)):
        backward_columns[(triton.cdiv(n, 128),)](to, partial, groups, n, ROWS=32, COLUMNS=128)
    return dx, dw, db


@pytest.mark.parametrize(("n", "warps", "groups"), [(100, 4, 1), (160, 8, 4)])
def test_gradients_under_locks_are_right_in_any_order(n, warps, groups):
    x, dy, w, b = draw(13, n)
    x64, w64, b64 = inputs = [t.double().requires_grad_() for t in (x, w, b)]
    wanted = torch.autograd.grad(torch.nn.functional.layer_norm(x64, (n,), w64, b64, EPS), inputs, dy.double())
    for _ in range(2 * ORDERS):
        assert all(close(g, w_) for g, w_ in zip(backward(x, dy, w, b, groups, warps), wanted, strict=True))


def test_without_the_lock_it_is_a_race():
    x, dy, w, b = draw(4, 100)
    with pytest.raises(SimulationError) as caught:
        backward(x, dy, w, b, groups=1, warps=4, locked=False)
    assert {r.kind for r in caught.value.reports} == {"race"}
    assert "`DW`" in str(caught.value) or "`DB`" in str(caught.value)


def test_programs_that_wait_for_each_other_are_told_of():
    with pytest.raises(SimulationError) as caught:
        cross[(2,)](torch.zeros(2), torch.zeros(3, dtype=torch.int32))
    (report,) = caught.value.reports
    assert report.kind == "deadlock"
    assert "polls `locks` byte 4" in report.message and "polls `locks` byte 0" in report.message
