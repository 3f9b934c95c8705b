"""Large tensors in one pass: the same that PyTorch's operators say, and silence where they must be asked."""

import math
from dataclasses import astuple

import pytest
import torch

from bench.core import contents, onepass
from bench.core.contents import Change
from bench.trial import accuracy
from bench.trial.accuracy import Limits, Yard
from kernels import Unavailable

N = onepass.LARGE + 777  # no whole stretches, and its threads' parts are of different lengths


def yard_of(sizes: tuple[int, ...], dtype: torch.dtype, noise: float = 1e-3) -> tuple[Yard, torch.Tensor]:
    gen = torch.Generator().manual_seed(1)
    count = math.prod(sizes)
    values = torch.randn(count, generator=gen, dtype=onepass.KEPT_AS[dtype])
    return Yard("out", values, sizes, dtype, dtype, Limits(noise)), values


def by_torch(monkeypatch: pytest.MonkeyPatch, flat: torch.Tensor, yard: Yard) -> accuracy.Size:
    with monkeypatch.context() as m:
        m.setattr(onepass, "errors", lambda *_: None)
        return accuracy.measure(flat, yard)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(N,), (N // 768, 768), (N // 3, 3)], ids=str)
def test_errors_are_those_that_pytorch_measures(monkeypatch, dtype, sizes):
    yard, values = yard_of(sizes, dtype)
    flat = (values + 1e-3 * torch.randn(len(values))).to(dtype)
    for at in (0, len(flat) // 2 - 1, len(flat) // 2, len(flat) - 1):  # where threads' parts begin and end
        got = flat.clone()
        got[at] += 5
        assert accuracy._measured_at_once(got, yard, accuracy.stretch_of(sizes))  # in one pass indeed
        found, wanted = accuracy.measure(got, yard), by_torch(monkeypatch, got, yard)
        assert astuple(found) == pytest.approx(astuple(wanted), rel=1e-4)
        assert found.absolute > 4.9


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whose", ["got", "truth", "both"])
def test_what_is_not_finite_is_left_to_pytorch(monkeypatch, value, whose):
    yard, values = yard_of((N,), torch.float32)
    got = values.float()
    if whose != "got":
        values[N // 2] = value
    if whose != "truth":
        got[N // 2] = value
    length = accuracy.stretch_of(yard.sizes)
    assert accuracy._measured_at_once(got, yard, length) is None
    assert accuracy.measure(got, yard).one == (pytest.approx(0, abs=1) if whose == "both" else math.inf)


def test_an_error_whose_square_overflows_is_left_to_pytorch():
    yard, values = yard_of((N,), torch.bfloat16)
    got = values.bfloat16()
    got[5] = 1e30
    assert accuracy._measured_at_once(got, yard, accuracy.stretch_of(yard.sizes)) is None


@pytest.mark.parametrize("shift", [0, 1, N // 2, N - 1])
@pytest.mark.parametrize("factor", [1.0, 7681 / 8192])
def test_a_buffer_holds_what_was_put_into_it_and_no_other_bit(shift, factor):
    source, held = torch.randn(N), torch.empty(N)
    contents.put(held, source, Change(0, shift, factor))
    assert onepass.holds(held, source, shift, factor)
    for at in (0, shift, N // 2, N - 1):
        bits = held.view(torch.int32)
        bits[at] ^= 1
        assert not onepass.holds(held, source, shift, factor)
        assert not contents._holds(held, source, Change(0, shift, factor))
        bits[at] ^= 1
    assert contents._holds(held, source, Change(0, shift, factor))


def test_a_zero_of_the_other_sign_is_another_bit_and_nan_the_same():
    source = torch.zeros(N)
    source[7] = math.nan
    held = source.clone()
    assert contents._holds(held, source, Change(0, 0))
    held[9] = -0.0
    assert not contents._holds(held, source, Change(0, 0, 0.99))


def test_without_a_compiler_pytorch_is_asked(monkeypatch):
    def none(*_: object) -> None:
        raise Unavailable("no C++ compiler")

    onepass._built.cache_clear()
    monkeypatch.setattr(onepass.Kernel, "_load", none)
    monkeypatch.setattr(onepass.ERRORS, "_functions", {})
    try:
        yard, values = yard_of((N,), torch.float32)
        assert accuracy._measured_at_once(values.float(), yard, 256) is None
        assert accuracy.measure(values.float(), yard).one < 1
        assert onepass.holds(torch.ones(N), torch.ones(N), 0, 1.0) is None
    finally:
        onepass._built.cache_clear()


def test_a_library_that_does_not_measure_is_not_believed(monkeypatch):
    onepass._built.cache_clear()
    monkeypatch.setattr(onepass, "ERRORS", lambda got, truth, unit, found, *_: found.zero_())
    try:
        with pytest.raises(RuntimeError, match="nothing can be judged"):
            onepass._built(torch.float32)
    finally:
        onepass._built.cache_clear()


def test_what_it_cannot_read_it_says_nothing_of():
    x = torch.ones(N)
    assert onepass.errors(x.half(), x, 0.1, 0.1, 1) is None  # another dtype
    assert onepass.errors(x[: N // 2], x[: N // 2].double(), 0.1, 0.1, 1) is None  # small
    assert onepass.holds(x.double(), x.double(), 0, 1.0) is None
    assert onepass.holds(torch.ones(2 * N)[::2], x, 0, 1.0) is None
