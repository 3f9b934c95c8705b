"""Which cases prove a variant: hard input on every shape, slices of what is timed, and few enough for the simulator."""

import math
from types import ModuleType

import pytest

from bench.core import case
from bench.core.case import cases_of, draw
from reference import contract
from reference.models import MODELS

LAYERS = contract.layer_names()
PHASES = [(layer, phase) for layer in LAYERS for phase in contract.phases_of(contract.load(layer))]
SEEDS = [0, 7]


def timed(layer):
    return [call.shape for call in MODELS["gpt2-124m"].shapes(layer, 4, 1024).values()]


def sizes(shape):
    return {k: v for k, v in shape.items() if k not in ("dtype", "accumulate")}


@pytest.mark.parametrize(("layer", "phase"), PHASES)
def test_every_edit_on_every_ragged_shape_and_both_ways(layer, phase):
    module = contract.load(layer)
    found = [(c.edit, sizes(c.shape), c.accumulate) for c in cases_of(layer, phase, "fp32", SEEDS)]
    ways = (False, True) if contract.pass_of(module, phase).accumulates else (False,)
    for shape in module.RAGGED:
        for edit in contract.edits_of(module, phase, {**shape, "dtype": "fp32"}):
            for way in ways:
                assert (edit, shape, way) in found


@pytest.mark.parametrize(("layer", "phase"), PHASES)
def test_plain_input_on_every_ragged_shape_with_every_seed(layer, phase):
    for thorough in (True, False):
        found = [
            (sizes(c.shape), c.seed) for c in cases_of(layer, phase, "fp32", SEEDS, thorough=thorough) if not c.edit
        ]
        assert found == [(shape, seed) for shape in contract.load(layer).RAGGED for seed in SEEDS]


def test_each_case_has_a_name_of_its_own():
    for layer, phase in PHASES:
        names = [(c.name, c.seed) for c in cases_of(layer, phase, "bf16", SEEDS, timed=timed(layer))]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(("layer", "phase"), PHASES)
def test_not_thorough_each_edit_meets_a_ragged_and_an_aligned_shape(layer, phase):
    module = contract.load(layer)
    cases = [c for c in cases_of(layer, phase, "fp32", SEEDS, thorough=False) if c.edit]
    assert len(cases) <= 2 * max(len(module.CASES), len(module.RAGGED))
    kinds = {kind: [s for s in module.RAGGED if contract.aligned(module, s) == kind] for kind in (True, False)}
    for kind, shapes in kinds.items():
        possible = {e for s in shapes for e in contract.edits_of(module, phase, {**s, "dtype": "fp32"})}
        assert possible == {c.edit for c in cases if contract.aligned(module, c.shape) == kind}
        for shape in shapes:
            assert shape in [sizes(c.shape) for c in cases], "no structured case sees this shape"


def test_not_thorough_an_edit_is_seen_both_ways_of_writing_gradients(monkeypatch):
    layer = contract.load("layernorm")
    monkeypatch.setattr(layer, "RAGGED", [dict(B=1, T=2, C=c, eps=1e-5, dresidual=False) for c in (3, 64)])
    for edit in contract.edits_of(layer, "backward", {**layer.RAGGED[0], "dtype": "fp32"}):
        cases = cases_of("layernorm", "backward", "fp32", SEEDS, thorough=False)
        assert {c.accumulate for c in cases if c.edit == edit} == {False, True}


def test_few_shapes_for_what_compiles_for_each():
    cases = cases_of("layernorm", "forward", "fp32", SEEDS, shapes=1)
    assert {c.shape["C"] for c in cases} == {contract.load("layernorm").RAGGED[0]["C"]}


# --- slices of the timed shapes


@pytest.mark.parametrize("layer", ["gelu", "layernorm", "softmax", "cross_entropy", "attention", "matmul"])
def test_a_slice_is_small_and_keeps_widths_and_alignment(layer):
    module = contract.load(layer)
    for shape in timed(layer):
        shape = {**shape, "dtype": "fp32"}
        slice = contract.sliced(module, shape, case.SLICE)
        long = getattr(module, "LONG", contract.LONG)
        assert contract.min_bytes(module, slice, "forward") < 32 << 20
        for symbol, size in shape.items():
            if symbol not in long:
                assert slice[symbol] == size
            elif long[symbol] >= contract.TILE:
                assert slice[symbol] % contract.TILE == size % contract.TILE
                assert slice[symbol] >= min(size, contract.TILE)


@pytest.mark.parametrize(
    ("size", "most", "found"),
    [(5, 9, 5), (4096, 128, 128), (1000, 128, 232), (1000, 500, 488), (50257, 128, 209), (7, 2, 3), (3, 2, 3)],
)
def test_cut(size, most, found):
    assert contract.cut(size, most) == found


def test_a_list_of_tensors_is_cut_along_first_axes():
    shape = contract.sliced(contract.load("global_norm"), timed("global_norm")[0], case.SLICE)
    whole = timed("global_norm")[0]["tensors"]
    assert [s[1:] for s in shape["tensors"]] == [tuple(s[1:]) for s in whole]
    assert sum(map(math.prod, shape["tensors"])) < 1 << 20


def test_timed_shapes_bring_every_edit_on_their_slice_and_some_on_a_large_one():
    cases = cases_of("gelu", "forward", "fp32", SEEDS, timed=[dict(N=1 << 24)])
    edits = set(contract.edits_of(contract.load("gelu"), "forward", dict(dtype="fp32")))
    small, large = ({c.edit for c in cases if c.name.endswith(what)} for what in (", slice 0", ", large slice 0"))
    assert small == edits
    assert len(large) == min(case.LARGE_EDITS, len(edits))
    assert any(c.shape["N"] * 4 >= case.LARGE for c in cases)
    assert {c.seed for c in cases if c.name == "slice 0"} == set(SEEDS)


def test_the_last_seed_chooses_what_runs_on_the_large_slice():
    found = set()
    for seed in range(len(contract.load("cross_entropy").CASES)):
        cases = cases_of("cross_entropy", "forward", "fp32", [0, seed], timed=timed("cross_entropy"))
        found |= {c.edit for c in cases if "large" in c.name}
    assert found >= set(contract.edits_of(contract.load("cross_entropy"), "forward", cases[-1].shape))


def test_what_kernels_go_about_by_size_is_on_every_large_slice():
    """Whatever the seed chooses of the others: a long cache that is not full."""
    shape = contract.load("decode_attention").sizes(1, 1, 12, 12, 64, 4096)
    for seed in range(3):
        cases = cases_of("decode_attention", "forward", "fp32", [0, seed], timed=[shape])
        large = [c.edit for c in cases if "large slice" in c.name]
        assert "a_third" in large and len(large) <= case.LARGE_EDITS + 1


def test_shapes_that_differ_only_in_what_is_cut_are_one_slice():
    cases = cases_of("gelu", "forward", "fp32", SEEDS, timed=[dict(N=1 << 24), dict(N=1 << 25)])
    assert not [c for c in cases if "slice 1" in c.name]


def test_the_simulator_gets_no_large_slice():
    cases = cases_of("gelu", "forward", "fp32", SEEDS, timed=[dict(N=1 << 24)], thorough=False)
    assert max(c.shape["N"] for c in cases) <= max(2 * case.SLICE, 769 * 127)


# --- edits


def test_an_edit_runs_only_where_it_says():
    @contract.applies("backward", when=lambda shape: shape["N"] > 4)
    def edit(tensors, shape):
        """Nothing."""

    layer = ModuleType("layer")
    layer.CASES = {"one": edit, "two": lambda tensors, shape: None}  # type: ignore[attr-defined]
    assert contract.edits_of(layer, "backward", dict(N=5)) == ["one", "two"]
    assert contract.edits_of(layer, "backward", dict(N=4)) == ["two"]
    assert contract.edits_of(layer, "forward", dict(N=5)) == ["two"]


@pytest.mark.parametrize(("layer", "phase"), PHASES)
def test_every_structured_case_of_a_quick_proof_can_be_drawn(layer, phase):
    """That every edit fits every shape is tests/reference/test_vectors.py's."""
    for dtype in ("fp32", "bf16", "fp16"):
        for c in cases_of(layer, phase, dtype, [0], thorough=False):
            if c.edit:
                draw(c)
