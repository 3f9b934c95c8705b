"""What a case takes of a GPU: within its memory for every layer, and fewer truths where they would be slow."""

import pytest

from bench.core.arena import Arena, handed_bytes
from bench.core.case import Case
from bench.trial import needs
from bench.trial.truth import Means
from reference import contract
from reference.models import MODELS

GB = 1 << 30


def card(gb: int = 139, flops: float = 3e13, rate: float = 3e12) -> Means:
    """As an H200 is, rather too slow than too fast."""
    return Means(free_bytes=gb * GB, context_bytes=600 << 20, flops_per_s=flops, bytes_per_s=rate)


H200 = card()
GPT2 = MODELS["gpt2-124m"]


def cases(layer: str, B: int = 64, dtype: str = "bf16"):
    module = contract.load(layer)
    for phase in contract.phases_of(module):
        for name, call in GPT2.shapes(layer, B, 1024).items():
            yield Case(layer, phase, contract.overwriting(module, phase, call.shape, dtype), name)


@pytest.mark.parametrize("layer", contract.layer_names())
def test_what_is_handed_back_is_as_large_as_an_arena_says(layer):
    module = contract.load(layer)
    for phase in contract.phases_of(module):
        for sizes in module.RAGGED[:3]:
            case = Case(layer, phase, contract.overwriting(module, phase, sizes, "bf16"), "")
            assert handed_bytes(case) >= Arena(case).size()
            assert handed_bytes(case) == Arena(case, workspace_bytes=5000).size()


@pytest.mark.parametrize("layer", contract.layer_names())
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_every_layer_of_a_batch_of_64_fits_a_card_of_141_gb(layer, dtype):
    for case in cases(layer, dtype=dtype):
        found = needs.of(case, last=2, contestants=8, means=H200)
        together = 1 if found.parked else 8
        contents = found.truths + 2
        judge = needs.judge_bytes(case, found.draws, contents, H200)
        each = needs.contestant_bytes(case, found.draws, H200)
        if dtype == "fp32":  # what fits there is our own kernels, which allocate nothing
            each -= needs.SPARE * handed_bytes(case)
        assert judge + together * each < 0.9 * H200["free_bytes"], str(case)
        assert contents * needs.truth_seconds(case, H200) < 3, str(case)


def one(layer: str, phase: str, name: str, dtype: str = "bf16", B: int = 64) -> Case:
    return next(c for c in cases(layer, B, dtype) if (c.phase, c.name) == (phase, name))


def test_fewer_draws_then_memory_in_turns_where_it_is_short():
    case = one("fused_classifier", "forward", "")
    drawn = needs.input_bytes(case)
    assert drawn == pytest.approx(64 * 1024 * 50304 * 2, rel=0.01)
    plenty = needs.of(case, 2, 2, card(gb=1000))
    assert plenty.draws == 3 and not plenty.parked
    one_draw = needs.of(case, 2, 3, H200)
    assert one_draw.draws == 1 and not one_draw.parked
    assert needs.of(case, 2, 12, H200).parked
    small = needs.of(one("layernorm", "forward", ""), 2, 8, H200)
    assert small.draws == 3 and not small.parked


def test_fewer_truths_where_the_card_is_slow_in_double():
    assert needs.of(one("matmul", "forward", "lm_head"), 2, 2, H200).truths == 1
    qkv = one("matmul", "forward", "qkv")
    assert needs.of(qkv, 2, 2, H200).truths == 3
    assert needs.of(qkv, 2, 2, card(flops=1e12)).truths == 1  # a card for games
    assert needs.of(qkv, 2, 2, card(rate=1e11)).truths == 1


def test_on_a_cpu_contestants_take_turns_where_together_they_would_not_fit():
    case = one("adamw", "forward", "", B=4)
    assert needs.of(case, 2, 7, free=24 << 30).parked
    assert not needs.of(case, 2, 7, free=48 << 30).parked and not needs.of(case, 2, 7).parked
    assert not needs.of(one("layernorm", "forward", "", B=4), 2, 7, free=24 << 30).parked


def test_on_a_cpu_the_case_alone_decides_how_much_is_drawn():
    assert needs.of(one("layernorm", "forward", "", "fp32", B=4), 2) == needs.Needs(3, 3, hard=True)
    assert needs.of(one("fused_classifier", "forward", "", "fp32", B=4), 2) == needs.Needs(1, 1)
    assert needs.of(one("matmul", "forward", "fc", "fp32", B=4), 2).truths == 1


def test_a_structured_case_is_tried_at_a_timed_shape_that_is_larger_than_what_is_proved_and_not_dear():
    assert needs.of(one("gelu", "backward", "", "fp32", B=4), 2).hard
    small = Case("gelu", "backward", {"N": 1000, "dtype": "fp32"}, "as large as its slice")
    assert not needs.of(small, 2).hard
    assert not needs.of(one("matmul", "forward", "fc", "fp32", B=4), 2).hard
    assert not needs.of(one("gelu", "backward", "", "fp32", B=4), 2, 2, H200).hard
