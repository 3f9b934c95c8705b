"""Parameters, calls, FLOPs and bytes of a training step against formulas written out by hand."""

import pytest

from reference import contract
from reference.models.gpt2 import SIZES

MODELS = {model.name: model for model in SIZES}
SMALL, B, T = MODELS["gpt2-124m"], 64, 1024
M, L, C, V, VP = B * T, 12, 768, 50257, 50304
X = M * C * 2  # bytes of one bf16 activation

# Padded vocabulary and 1024 positions; unpadded, the published 124,439,808 … 1,557,611,200.
PARAMETERS = {
    "gpt2-tiny": 3_327_744,
    "gpt2-124m": 124_475_904,
    "gpt2-350m": 354_871_296,
    "gpt2-774m": 774_090_240,
    "gpt2-1558m": 1_557_686_400,
}
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
}


def call(layer, name="", dtype="bf16"):
    found = SMALL.shapes(layer, B, T)[name]
    return contract.load(layer), {**found.shape, "dtype": dtype}


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name):
    model = MODELS[name]
    C, L = model.C, model.L
    by_hand = model.vp * C + model.max_t * C + L * (12 * C * C + 13 * C) + 2 * C
    assert model.parameters == by_hand == PARAMETERS[name]
    assert model.vp == VP
    assert model.head_size in (32, 64)
    if name in PUBLISHED:
        assert model.parameters - (model.vp - model.v) * C == PUBLISHED[name]


@pytest.mark.parametrize("name", MODELS)
def test_calls_of_a_step(name):
    model = MODELS[name]
    L = model.L
    calls = {
        f"{layer}/{shape}".rstrip("/"): c.calls
        for layer, shapes in sorted(model.calls(4, 128).items())
        for shape, c in shapes.items()
    }
    assert calls == {
        "adamw": 1,
        "attention": L,
        "cross_entropy": 0,
        "embedding": 1,
        "fused_classifier": 1,
        "gelu": 0,
        "global_norm": 1,
        "layernorm": 1,
        "matmul/qkv": L,
        "matmul/attproj": L,
        "matmul/fc": L,
        "matmul/fcproj": L,
        "matmul/lm_head": 1,
        "residual": 0,
        "residual_layernorm/block": 2 * L - 1,
        "residual_layernorm/final": 1,
        "softmax/scores": 0,
    }


@pytest.mark.parametrize("layer", SMALL.calls(B, T))
@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_those_of_the_model(layer, name):
    """Every tensor of every named shape has sizes; those of weights are sizes of the model's parameters."""
    model = MODELS[name]
    module = contract.load(layer)
    of_the_model = set(model.parameter_shapes().values()) | {(T, model.C)}  # wpe's first T rows
    for c in model.shapes(layer, 2, T).values():
        shape = {**c.shape, "dtype": "bf16"}
        for phase in contract.phases_of(module):
            p = contract.pass_of(module, phase)
            assert all(shape[s] is not None for s in p.scalars)
            for t in p.tensors():
                if not t.when(shape):
                    continue
                assert all(size > 0 for sizes in t.many_sizes(shape) for size in sizes), t.name
                if t.parameter or t.accumulates:
                    assert t.sizes(shape) in of_the_model, t.name
            assert contract.flops(module, shape, phase) > 0
            assert contract.min_bytes(module, shape, phase) > 0


@pytest.mark.parametrize("window", [0, 1, 4, 7, 9])
def test_attention_counts_visible_pairs_of_a_window(window):
    attention = contract.load("attention")
    shape = dict(B=2, T=7, NH=3, NKV=1, HS=8, causal=True, window=window)
    pairs = sum(1 for t in range(7) for key in range(t + 1) if not window or t - key < window)
    assert attention.flops(shape, "forward") == 4 * 2 * 3 * 8 * pairs
    assert attention.flops(shape, "backward") == 10 * 2 * 3 * 8 * pairs


def test_a_call_mentions_an_option_only_where_a_shape_has_it():
    p = contract.Pass((), (), ("a",), ("b", "c"))
    assert p.positional() == ["a"]
    for options, given in (({}, []), (dict(b=0, c=0), []), (dict(b=2), [2]), (dict(c=3), [0, 3])):
        assert p.scalars_in(dict(a=1, **options)) == [1, *given]
    with pytest.raises(ValueError, match="accumulate"):
        contract.Pass((), (contract.Tensor("dx", "C", accumulates=True),), (), ("b",))


def test_matmul_flops_of_a_step():
    """6 FLOP a token and matrix element: 2 forward, 4 backward; the tied head counts, positions do not."""
    module = contract.load("matmul")
    found = 0
    for c in SMALL.shapes("matmul", B, T).values():
        found += c.calls * sum(contract.flops(module, c.shape, phase) for phase in contract.PHASES)
    assert found == 6 * M * (L * 12 * C * C + VP * C)
    assert found == pytest.approx(48.59e12, rel=1e-3)  # 48.6 TFLOP at B=64, T=1024


@pytest.mark.parametrize(
    ("layer", "name", "phase", "gflop", "rel"),
    [
        ("matmul", "qkv", "forward", 231.9, 1e-3),
        ("matmul", "attproj", "forward", 77.3, 1e-3),
        ("matmul", "fc", "forward", 309.2, 1e-3),
        ("matmul", "fcproj", "backward", 2 * 309.2, 1e-3),
        ("matmul", "lm_head", "forward", 5063.8, 1e-3),
        # 2 B NH T^2 HS, and 2.5 times that backward; the diagonal is the 1/T more
        ("attention", "", "forward", 103.079 * 1025 / 1024, 1e-3),
        ("attention", "", "backward", 257.698 * 1025 / 1024, 1e-3),
    ],
)
def test_gflop(layer, name, phase, gflop, rel):
    module, shape = call(layer, name)
    assert contract.flops(module, shape, phase) / 1e9 == pytest.approx(gflop, rel=rel)


STATS = 2 * M * 4  # mean and rstd
LSE = B * 12 * T * 4


@pytest.mark.parametrize(
    ("layer", "name", "phase", "expected"),
    [
        ("layernorm", "", "forward", 2 * X + 2 * 2 * C + STATS),
        ("residual_layernorm", "block", "forward", 4 * X + 2 * 2 * C + STATS),
        ("residual_layernorm", "block", "backward", 4 * X + 3 * 2 * C + STATS),
        ("residual_layernorm", "final", "backward", 3 * X + 3 * 2 * C + STATS),
        ("attention", "", "forward", 4 * X + LSE),
        ("attention", "", "backward", 8 * X + LSE),
        ("gelu", "", "forward", 8 * X),
        ("gelu", "", "backward", 12 * X),
        ("residual", "", "forward", 3 * X),
        ("matmul", "qkv", "forward", 2 * (M * C + 3 * C * C + 3 * C + M * 3 * C)),
        ("matmul", "fc", "forward", 2 * (M * C + 4 * C * C + 4 * C + 2 * M * 4 * C)),
        ("matmul", "fcproj", "backward", 2 * (M * C + 3 * M * 4 * C + 2 * 4 * C * C + C)),
        ("matmul", "lm_head", "forward", 2 * (M * C + VP * C + M * VP)),
        ("fused_classifier", "", "forward", 2 * M * VP * 2 + M * (8 + 4 + 4)),
        ("cross_entropy", "", "forward", M * VP * 2 + M * (8 + 4 + 4)),
        ("global_norm", "", "forward", 124_475_904 * 2 + 4),
        # half of the scores are seen; all are written
        ("softmax", "scores", "forward", 2 * (B * 12 * T * (T + 1) // 2 + B * 12 * T * T)),
        # one row of wte at least
        ("embedding", "", "forward", M * 8 + X + (T + 1) * C * 2),
    ],
)
def test_bytes(layer, name, phase, expected):
    module, shape = call(layer, name)
    assert contract.min_bytes(module, shape, phase) == expected


@pytest.mark.parametrize(
    ("layer", "flops", "expected"),
    [
        # a byte an element and four bytes for 64 of them, instead of four bytes an element
        ("q8_matmul", 2 * 32000 * 768, (32000 + 1) * (768 + 12 * 4) + 32000 * 2),
        ("q8_quantise", 3 * M * 768, M * (768 * 2 + 768 + 12 * 4)),
        ("sampling", 4 * B * 32000, B * (32000 * 2 + 4 + 8)),
    ],
)
def test_flops_and_bytes_of_decoding(layer, flops, expected):
    module, shape = call(layer)
    assert contract.flops(module, shape, "forward") == flops
    assert contract.min_bytes(module, shape, "forward") == expected


def test_adamw_moves_28_bytes_a_parameter_in_fp32():
    """Gradient read; parameter and two moments read and written; three scalars."""
    module, shape = call("adamw", dtype="fp32")
    assert contract.min_bytes(module, shape, "forward") == 28 * 124_475_904 + 12


def test_adding_to_gradients_reads_them_too():
    module, shape = call("matmul", "qkv")
    added = contract.min_bytes(module, {**shape, "accumulate": True}, "backward")
    assert added - contract.min_bytes(module, shape, "backward") == 2 * (3 * C * C + 3 * C)


def test_saved_activations():
    """What forward keeps for backward: x and statistics for a layernorm; q, k, v, out and lse for attention."""
    assert contract.saved_bytes(*call("layernorm")) == X + STATS
    assert contract.saved_bytes(*call("attention")) == 4 * X + LSE
    assert contract.saved_bytes(*call("adamw")) == 0


def test_mfu_conventions_are_those_of_the_literature():
    """MFLOP a token of gpt2-124m at T=1024: 855.4 by PaLM's formula as nanoGPT has it, 803.5 by llm.c's."""
    found = SMALL.flops_per_token(1024)
    assert found["palm"] / 1e6 == pytest.approx(855.4, abs=0.05)
    assert found["llmc"] / 1e6 == pytest.approx(803.5, abs=0.05)
