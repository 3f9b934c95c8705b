"""What rotary embeddings are for, and what their table holds."""

import math

import pytest
import torch

from bench.core.case import DTYPES, Case, draw, one
from bench.trial import accuracy, truth
from reference import contract, rope

HS, S = 12, 64


def test_the_table_is_cosines_and_sines_of_position_times_frequency():
    cos, sin = rope.table(S, HS, 500.0)
    assert cos.shape == sin.shape == (S, HS // 2) and cos.dtype == sin.dtype == torch.float32
    for position in (0, 1, 63):
        for i in range(HS // 2):
            angle = position * 500.0 ** (-2 * i / HS)
            wanted = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float32)
            assert [cos[position, i], sin[position, i]] == wanted.tolist()


def test_far_positions_are_worked_out_in_fp64():
    """An angle of 1e5 in fp32 is off by 4e-3."""
    cos, _ = rope.table(100_001, 4, 1e4)
    assert cos[100_000, 0].item() == pytest.approx(math.cos(1e5), abs=1e-7)


def turned(x: torch.Tensor, start: int, style: str, back: bool = False) -> torch.Tensor:
    """x (T, HS) as one head, from a position on."""
    cos, sin = (t.double() for t in rope.table(S, HS, 100.0))
    tables = torch.tensor([start]), cos, sin, 1, style
    x = x[None, :, None]
    return (rope.backward(*tables, dqkv=x)["dqkv"] if back else rope.forward(*tables, qkv=x)["qkv"])[0, :, 0]


@pytest.mark.parametrize("style", ["interleaved", "half"])
def test_a_score_depends_on_the_distance_alone(style):
    q, k = torch.randn(2, 1, HS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    here = turned(q, 20, style) @ turned(k, 13, style).T
    assert torch.allclose(here, turned(q, 50, style) @ turned(k, 43, style).T, rtol=1e-6)
    assert not torch.allclose(here, turned(q, 50, style) @ turned(k, 42, style).T, rtol=1e-2)


@pytest.mark.parametrize("style", ["interleaved", "half"])
def test_backward_turns_back(style):
    x = torch.randn(5, HS, dtype=torch.float64)
    assert torch.allclose(turned(turned(x, 7, style), 7, style, back=True), x, rtol=1e-6)
    assert torch.equal(turned(x, 7, style)[1], turned(x[1:2], 8, style)[0]), "positions count on from the start"


def test_one_style_is_the_other_of_permuted_channels():
    x = torch.randn(5, HS, dtype=torch.float64)
    order = torch.cat([torch.arange(0, HS, 2), torch.arange(1, HS, 2)])
    assert torch.allclose(turned(x, 3, "interleaved")[:, order], turned(x[:, order], 3, "half"))


def test_another_style_is_an_error():
    with pytest.raises(KeyError, match="neox"):
        turned(torch.zeros(1, HS), 0, "neox")


def test_sequences_lie_within_the_table():
    for sizes in rope.RAGGED:
        for edit in (None, *contract.edits_of(rope, "forward", {**sizes, "dtype": "fp32"})):
            start = one(draw(Case("rope", "forward", {**sizes, "dtype": "fp32"}, "", 3, edit))["start"])
            assert start.min() >= 0 and start.max() + sizes["T"] <= sizes["S"], (sizes, edit)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("phase", contract.PHASES)
@pytest.mark.parametrize("sizes", [s for s in rope.RAGGED if s["S"] > 30], ids=str)
def test_a_table_in_the_working_dtype_is_found_where_a_pair_is_turned_back(sizes, phase, dtype):
    """fp32 tables are the contract's: at a position of some hundreds, eight bits of a cosine are not enough."""
    case = Case("rope", phase, {**sizes, "dtype": dtype}, "", 1, "turned_back")
    name = {"forward": "qkv", "backward": "dqkv"}[phase]
    drawn = draw(case)
    yard = truth.yards_of(case, drawn, None)[0]
    values = {n: one(v) for n, v in drawn.items()}

    def found(table: torch.dtype) -> str:
        cos, sin = (values[n].to(table).float() for n in ("cos", "sin"))
        x = {name: values[name].float()}
        out = getattr(rope, phase)(values["start"], cos, sin, sizes["R"], sizes["style"], **x)[name]
        return accuracy.judge(out.to(DTYPES[dtype]), yard, sane=False).check

    assert found(torch.float32) == "ok" and found(DTYPES[dtype]) == "inaccurate"
