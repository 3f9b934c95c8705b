"""Lanes that store one reduction's result to one word differ by rounding: a note, no race. Anything else stays one."""

import pytest
import torch

from bench.simulate import SimulationError, take_notes
from bench.simulate.ptx import parse
from bench.simulate.values import Values
from tests.bench.simulate.kernels import marked_lines, names, run

SEEDS = range(4)
NOTED = ("one_store", "cancelling", "in_batches", "warps_hold_the_same", "halves", "overflown")
SAME = ("nans",)
RACES = tuple(name for name in names("rounding.cu") if marked_lines("rounding.cu", name))


@pytest.fixture(autouse=True)
def _no_old_notes():
    take_notes()


def test_every_kernel_is_either_noted_or_a_race():
    assert [*NOTED, *SAME, *RACES] == names("rounding.cu")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", NOTED)
def test_rounding_is_a_note(kernel, seed):
    run("rounding.cu", kernel, n=64, seed=seed)
    (note,) = take_notes()
    assert (note.kernel, note.kind) == (kernel, "nondeterministic")
    assert "rounding.cu:" in note.message and "enable_fp_fusion=False" in note.message
    assert take_notes() == (), "they are taken once"


@pytest.mark.parametrize("kernel", SAME)
def test_what_is_one_value_on_a_card_is_no_finding(kernel):
    out, *_ = run("rounding.cu", kernel, n=64)
    assert out[0].isnan() and take_notes() == ()


def test_the_result_is_one_of_the_lanes():
    out, given, _ = run("rounding.cu", "one_store", n=64)
    x = given.double() * 0.37 + 0.1
    x[::32] += 123.4567
    assert torch.allclose(out.double(), x.square().sum().expand(64), rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", RACES)
def test_a_race_stays_one(kernel, seed):
    with pytest.raises(SimulationError) as caught:
        run("rounding.cu", kernel, n=64, seed=seed)
    assert {r.kind for r in caught.value.reports} == {"race"}
    assert any(line in str(caught.value) for line in marked_lines("rounding.cu", kernel))


def test_one_note_of_each_line_however_often_it_runs():
    for seed in SEEDS:
        run("rounding.cu", "one_store", n=64, seed=seed)
    assert len(take_notes()) == 1


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ("add.f32 %r1, %r2, %r3;", "F32"),
        ("add.f32 %r4, %r2, %r3; selp.b32 %r1, %r4, %r5, %p1; ld.global.b32 %r5, [%rd1];", "F32"),
        ("add.f32 %r4, %r2, %r3; mov.b32 %r1, %r4; @%p1 mov.u32 %r1, 0x0;", "F32"),
        ("cvt.rn.bf16x2.f32 %r1, %r2, %r3;", "Bf16"),
        ("cvt.rna.tf32.f32 %r1, %r2;", "Tf32"),
        ("cvt.rn.f16.f32 %rs1, %r2; mov.b32 %r1, {%rs1, %rs1};", "F16"),
        ("add.s32 %r1, %r2, %r3;", "Other"),
        ("cvt.rzi.s32.f32 %r1, %r2;", "Other"),
        ("add.f32 %r1, %r2, %r3; @%p1 add.s32 %r1, %r2, 1;", "Other"),
        ("ld.global.b32 %r1, [%rd1];", "Other"),
        ("mov.b32 %r1, %r4; mov.b32 %r4, %r1;", "Other"),
    ],
)
def test_what_a_register_holds(made, kind):
    """Registers of 32 bits may hold anything: it is known from the instructions that made them."""
    registers = ".reg .b32 %r<9>; .reg .b16 %rs<2>; .reg .b64 %rd<2>; .reg .pred %p<2>;"
    body = f"{{ {registers} {made} st.shared.b32 [%rd1], %r1; }}"
    (kernel,) = parse(f".version 8.5\n.target sm_90a\n.visible .entry k() {body}").kernels
    store = list(kernel.body.statements())[-1]
    assert Values(kernel.body).exchanged(store) == kind
