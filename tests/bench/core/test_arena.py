"""Memory that tells: poison, guard bands, checksums, packed slices."""

import ctypes
import faulthandler
import os
import signal

import pytest
import torch

from bench.core.arena import ALIGN, QUIET_NAN, Arena, poison_of
from bench.core.case import Case, draw, one, run_truth, truth_of
from reference import contract

ATTENTION = Case("attention", "backward", {**contract.load("attention").RAGGED[2], "dtype": "bf16"}, "test")
RESIDUAL = Case("residual", "forward", {"N": 100, "dtype": "fp32"}, "test")


def arena_of(case: Case) -> Arena:
    arena = Arena(case)
    arena.load(draw(case))
    arena.reset(8)
    return arena


def test_poison_is_fresh_each_time_and_counted():
    arena = arena_of(RESIDUAL)
    out = one(arena.outputs["out"])
    first = out.clone()
    assert out.isnan().all() and arena.survivors()["out"].all()
    arena.reset(10)
    assert not torch.equal(first.view(torch.int32), out.view(torch.int32))
    out[:75] = float("nan")  # a NaN that the kernel wrote is not the poison
    left = arena.survivors()["out"].flatten()
    assert left[75:].all() and not left[:75].any()
    out.fill_(0.0)
    assert arena.survivors() == {}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
def test_every_dtype_can_be_poisoned(dtype):
    arena = arena_of(Case("residual", "forward", {"N": 9, "dtype": dtype}, "test"))
    out = one(arena.outputs["out"])
    assert out.isnan().all() and arena.survivors()["out"].all()
    found = set()
    for seed in range(9, 99, 2):  # in other calls it is a number
        arena.reset(seed)
        assert arena.survivors()["out"].all() and out.isfinite().all() and (out.abs() > 3e4).all()
        found.add(float(out[0]))
    assert len(found) > 20 and min(found) < 0 < max(found)


def test_a_workspace_is_poisoned_with_what_is_no_zero():
    arena = Arena(RESIDUAL, workspace_bytes=64)
    arena.load(draw(RESIDUAL))
    found = set()
    for seed in range(60):
        arena.reset(seed)
        assert arena.workspace is not None
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            numbers = arena.workspace.view(dtype)
            assert (numbers.abs() > 1e15).all() or (seed % 2 == 0 and numbers.isnan().all())
        found.add(int(arena.workspace[0]))
    assert len(found) > 10


def test_whole_numbers_are_poisoned_with_what_is_no_answer():
    quantised = arena_of(Case("q8_quantise", "forward", {"M": 3, "K": 9, "G": 4, "KG": 3, "dtype": "fp32"}, "test"))
    q = one(quantised.outputs["q"])
    assert (q == -128).all() and quantised.survivors()["q"].all()
    q[1:] = 0
    assert quantised.survivors()["q"].sum() == 9
    shape = {**contract.load("sampling").RAGGED[2], "dtype": "bf16"}
    sampled = arena_of(Case("sampling", "forward", shape, "test"))
    token = one(sampled.outputs["token"])
    first = token.clone()
    assert (token < 0).all() and sampled.survivors()["token"].all()
    sampled.reset(10)
    assert (first != token).all(), "the last call's poison may have been kept"
    token.fill_(7)
    assert not sampled.survivors()


@pytest.mark.parametrize(
    ("offset", "says"), [(100, "after the buffer, the nearest at +0"), (-1, "before the buffer, the nearest at -")]
)
def test_a_write_outside_by_one_is_seen(offset, says):
    arena = arena_of(RESIDUAL)
    assert not arena.broken_fences()
    out = one(arena.outputs["out"])
    out.as_strided((1,), (1,), out.storage_offset() + offset)[0] = 3.0
    assert says in arena.broken_fences()["out[0]"]


def test_inputs_are_fenced_too():
    arena = arena_of(RESIDUAL)
    a = one(arena.inputs["a"])
    a.as_strided((1,), (1,), a.storage_offset() + 100)[0] = 3.0
    assert list(arena.broken_fences()) == ["a[0]"]


def ended_by_writing_to(tensor: torch.Tensor) -> bool:
    """Whether a fork of this process that writes its first byte to itself is ended by SIGSEGV."""
    address = tensor.data_ptr()
    child = os.fork()
    if not child:
        faulthandler.disable()
        ctypes.memmove(address, address, 1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGSEGV


def test_sealed_inputs_cannot_be_written_to_meanwhile_and_outputs_can():
    arena = Arena(Case("residual", "forward", {"N": 3, "dtype": "fp32"}, "test"))
    inputs, out = [one(arena.inputs[name]) for name in ("a", "b")], one(arena.outputs["out"])
    with arena.inputs_sealed():
        assert all(map(ended_by_writing_to, inputs)) and not ended_by_writing_to(out)
        out.fill_(1)
    assert not any(map(ended_by_writing_to, inputs))


def test_q_k_v_are_slices_of_one_tensor_and_so_are_their_gradients():
    arena = arena_of(ATTENTION)
    for names in (("q", "k", "v"), ("dq", "dk", "dv")):
        parts = [one({**arena.inputs, **arena.outputs}[n]) for n in names]
        assert len({p.untyped_storage().data_ptr() for p in parts}) == 1
        assert {p.stride(1) for p in parts} == {(4 + 2 * 2) * 32} and parts[0].stride(3) == 1


def test_buffers_are_aligned_to_cache_lines():
    arenas = [arena_of(RESIDUAL), arena_of(ATTENTION)]
    assert all(f.view.data_ptr() % ALIGN == 0 for arena in arenas for f in arena.fences.values())


def test_accumulated_gradients_start_from_their_old_values():
    shape = {**contract.load("matmul").RAGGED[0], "dtype": "fp32", "accumulate": True}
    case = Case("matmul", "backward", shape, "test")
    arena, values = Arena(case), draw(case)
    arena.load(values)
    arena.reset(seed=2)
    assert torch.equal(one(arena.outputs["dweight"]), one(values["dweight"])) and one(arena.outputs["dx"]).isnan().all()
    plain = run_truth(case.module, "backward", values, shape)
    added = truth_of(case, values)
    assert torch.allclose(one(added["dweight"]), one(plain["dweight"]) + one(values["dweight"]).double())
    assert torch.equal(one(added["dx"]), one(plain["dx"]))


def test_in_place_tensors_are_restored_before_each_call():
    shape = {**contract.load("fused_classifier").RAGGED[3], "dtype": "fp32"}
    case = Case("fused_classifier", "forward", shape, "test")
    arena, values = Arena(case), draw(case)
    arena.load(values)
    arena.reset()
    one(arena.outputs["logits"]).zero_()
    arena.reset()
    assert torch.equal(one(arena.outputs["logits"]), one(values["logits"]))


def test_what_is_done_to_an_argument_does_not_last_and_is_told():
    arena = arena_of(RESIDUAL)
    args, kwargs = arena.args(), arena.kwargs()
    assert arena.tampered(args, kwargs) == ""
    one(kwargs["out"]).data = torch.zeros(100)
    assert "another address" in arena.tampered(args, kwargs)
    assert one(arena.outputs["out"]).isnan().all() and arena.tampered(arena.args(), arena.kwargs()) == ""


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (lambda t: setattr(t, "__class__", Lazy), "became a Lazy"),
        (lambda t: t.resize_(50), "other sizes"),
        (lambda t: t.set_(torch.zeros(100)), "another address"),
        (lambda t: t.as_strided_((50,), (2,)), "other sizes"),
    ],
)
def test_an_output_that_is_no_longer_the_output(tamper, says):
    arena = arena_of(RESIDUAL)
    args, kwargs = arena.args(), arena.kwargs()
    tamper(kwargs["out"])
    assert says in arena.tampered(args, kwargs)


class Lazy(torch.Tensor):
    pass


def test_a_probe_sees_what_is_written_later():
    arena = arena_of(RESIDUAL)
    one(arena.outputs["out"]).zero_()
    told = [p.plain() for p in arena.probe()]
    assert arena.late(told) == ""
    one(arena.outputs["out"])[:] = 1
    assert "64 of 64 elements of out[0]" in arena.late(told)


def test_probes_lie_elsewhere_each_time():
    arena = arena_of(Case("residual", "forward", {"N": 100_000, "dtype": "fp32"}, "test"))
    assert len({arena.probe()[0].start for _ in range(10)}) == 10


def test_guard_bands_and_poison_follow_from_their_seeds():
    one_, other = Arena(RESIDUAL, seed=3), Arena(RESIDUAL, seed=4)
    for arena in (one_, other):
        arena.reset(seed=8)
    assert one_.poison == other.poison
    assert not torch.equal(one_.fences["a[0]"].guard, other.fences["a[0]"].guard)
    other.fence_off(3)
    assert torch.equal(one_.fences["a[0]"].guard, other.fences["a[0]"].guard) and not other.broken_fences()


def test_poison_is_no_nan_that_arithmetic_makes():
    """Clear free bits are what a CPU makes of 0/0, set ones what a GPU does."""
    for dtype, (base, bits) in QUIET_NAN.items():
        made = {poison_of(seed)[dtype] - base for seed in range(0, 4000, 2)}
        assert len(made) > 60 and made.isdisjoint({0, (1 << bits) - 1, (1 << min(bits, 30)) - 1}), dtype
