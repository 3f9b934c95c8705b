"""New contents for each call: in full, the same in every process, and what belongs together stays together."""

import pytest
import torch

from bench.core import contents
from bench.core.arena import Arena
from bench.core.case import Case, cases_of, draw, each, one, run_truth
from reference import contract


def case_of(layer: str, phase: str, number: int = 0, dtype: str = "fp32") -> Case:
    module = contract.load(layer)
    return Case(layer, phase, contract.overwriting(module, phase, module.RAGGED[number], dtype), "test", seed=5)


GELU = Case("gelu", "forward", {"N": 4096, "dtype": "fp32"}, "test")
LAYERNORM = Case(
    "layernorm", "backward", {"B": 4, "T": 8, "C": 64, "eps": 1e-5, "dresidual": False, "dtype": "fp32"}, ""
)


def test_every_element_changes_and_no_two_seeds_agree():
    x = one(draw(GELU)["x"])
    seen = [x, *(one(contents.changed(GELU, {"x": x}, seed)["x"]) for seed in range(1, 30))]
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert (a == b).double().mean() < 0.01


def test_values_stay_of_the_same_size():
    x = one(draw(GELU)["x"])
    assert one(contents.changed(GELU, {"x": x}, 9)["x"]).std() == pytest.approx(float(x.std()), rel=0.08)


def test_scores_of_queries_and_keys_are_no_old_ones_that_moved():
    """q and k rolled by rows would have the same products in other places: whoever kept them would be half done."""
    shape = {"B": 1, "T": 8, "NH": 2, "NKV": 2, "HS": 64, "causal": True, "dtype": "fp32"}
    case = Case("attention", "forward", shape, "test", seed=5)
    drawn = draw(case)

    def products(values) -> torch.Tensor:
        q, k = (one(values[name])[0, :, 0].double() for name in ("q", "k"))
        return q @ k.T

    moved = [products(drawn).roll((i, j), (0, 1)) for i in range(8) for j in range(8)]
    ratios = [products(contents.changed(case, drawn, seed)) / torch.stack(moved) for seed in range(1, 21)]
    known = [bool((r.flatten(1).std(1) < 1e-3).any()) for r in ratios]
    assert sum(known) <= 3, "moved alike by chance, once in 64"


SETTLED = [layer for layer in contract.layer_names() if hasattr(contract.load(layer), "settle")]


@pytest.mark.parametrize("layer", SETTLED)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_whole_numbers_stay_exact_whatever_the_contents(layer, dtype):
    """The formula in fp32 finds the same ones as the truth, of every draw, of what becomes of it, and of every edit."""
    module = contract.load(layer)
    p = module.FORWARD
    whole = [t.name for t in p.outputs if t.dtype in contract.INTEGERS]
    for case in cases_of(layer, "forward", dtype, [4, 5], shapes=7, thorough=False):
        values = draw(case)
        for seed in (0, 6) if case.edit is None else (0,):
            now = contents.changed(case, values, seed)
            truth = run_truth(module, "forward", now, case.shape)
            args = [one(now[t.name]) for t in p.inputs]
            args = [x.float() if x.is_floating_point() else x for x in args]
            found = module.forward(*args, *(case.shape[s] for s in p.scalars))
            for name in whole:
                assert torch.equal(found[name], one(truth[name])), f"{case}, contents {seed}: {name}"


@pytest.mark.parametrize("layer", SETTLED)
def test_rows_of_settled_contents_are_those_of_the_whole(layer):
    module = contract.load(layer)
    case = case_of(layer, "forward", 0, "bf16")
    made = contents.Contents(case, draw(case), seed=9)
    axis = "M" if "M" in case.shape else "B"
    names = {t.name for t in module.FORWARD.inputs if t.shape.split()[0] == axis}
    whole, rows = made.whole(), made.rows(1, 3, names)
    assert all(torch.equal(one(rows[n]), one(whole[n])[1:3]) for n in names)
    assert all(made.held_by(n, whole[n]) for n in names)
    spoilt = one(whole[min(names)]).clone()
    spoilt[-1] = 0
    assert not made.held_by(min(names), spoilt)
    assert not torch.equal(spoilt, one(made.drawn[min(names)]))


def test_neighbours_of_what_is_summed_have_factors_of_their_own():
    """No factor takes the sum of a draw's squares to that of its changed contents: who wants it must read them."""
    shape = dict(tensors=[(5000,), (3,)], dtype="fp32")
    case = Case("global_norm", "forward", shape, "made up", 0)
    values = draw(case)
    (change, _), made = contents.changes(case, values, 5)["grads"], each(contents.changed(case, values, 5)["grads"])
    ratio = made[0] / each(values["grads"])[0].roll(change.shift)
    blocks = ratio[: 5000 // 16 * 16].view(-1, 16)
    assert torch.allclose(blocks, blocks[:, :1].expand_as(blocks), rtol=1e-6)
    assert len(blocks[:, 0].mul(8192).round().unique()) > 200


def test_seed_0_changes_nothing():
    values = draw(LAYERNORM)
    made = contents.changed(LAYERNORM, values, 0)
    assert all(torch.equal(a, b) for n in values for a, b in zip(each(made[n]), each(values[n]), strict=True))


@pytest.mark.parametrize("layer", contract.layer_names())
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_arena_holds_what_the_judge_works_out_the_truth_of(layer, dtype):
    """Packed slices, lists, tensors in place: the two ways of making the contents agree bit by bit."""
    for phase in contract.phases_of(contract.load(layer)):
        for number in range(2):
            case = case_of(layer, phase, number, dtype)
            values = draw(case)
            arena = Arena(case)
            arena.load(values, seed=77)
            arena.reset()
            wanted = contents.changed(case, values, 77)
            for name, value in wanted.items():
                held = each({**arena.inputs, **arena.outputs}[name])
                for a, b in zip(held, each(value), strict=True):
                    assert torch.equal(a, b), name


def test_statistics_stay_with_what_they_are_of():
    """A variant may recompute what forward saved: new contents must not contradict themselves."""
    values = contents.changed(LAYERNORM, draw(LAYERNORM), 3)
    x = one(values["x"]).double()
    assert torch.allclose(x.mean(-1), one(values["mean"]).double(), atol=1e-6)
    other = draw(LAYERNORM)
    assert not torch.equal(one(other["x"]), one(values["x"])) and not torch.equal(
        one(other["dout"]), one(values["dout"])
    )


def test_attention_saved_what_it_now_gets():
    case = case_of("attention", "backward", 0)
    values = contents.changed(case, draw(case), 8)
    forward = run_truth(case.module, "forward", values, case.shape)
    for name in {t.name for t in case.module.FORWARD.outputs} & values.keys():
        assert torch.allclose(one(forward[name]), one(values[name]).double(), atol=1e-4)


def test_a_parameter_stays_its_masters_rounding():
    case = case_of("adamw", "forward", 0, "bf16")
    values = contents.changed(case, draw(case), 4)
    for p, master in zip(each(values["params"]), each(values["masters"]), strict=True):
        assert torch.equal(p, master.bfloat16())
    assert float(one(values["step"])) == float(one(draw(case)["step"]))


def test_whole_numbers_stay_in_range():
    case = case_of("embedding", "forward")
    tokens = one(contents.changed(case, draw(case), 4)["tokens"])
    assert tokens.dtype == torch.int64 and tokens.min() >= 0 and tokens.max() < case.shape["V"]


@pytest.mark.parametrize("layer", contract.layer_names())
def test_some_rows_of_contents_are_those_of_the_whole_and_a_buffer_is_held_to_all_of_it(layer, monkeypatch):
    monkeypatch.setattr(contents, "BLOCK", 100)  # more than one block, and a rest
    for phase in contract.phases_of(contract.load(layer)):
        case = case_of(layer, phase, 0, "bf16")
        drawn = draw(case)
        made, whole = contents.Contents(case, drawn, 77), contents.changed(case, drawn, 77)
        names = {n for n, v in drawn.items() if not isinstance(v, list) and v is not None and v.dim()}
        for name, value in whole.items():
            size = len(one(value)) if name in names else 1
            rows = made.rows(size // 2, size, {name} & names)
            wanted = [x[size // 2 :] if name in names else x for x in each(value)]
            assert all(torch.equal(a, b) for a, b in zip(each(rows[name]), wanted, strict=True)), name
            assert made.held_by(name, value), name
            for part in each(value):
                if part.numel():
                    last = (-1,) * part.dim()
                    held = part[last].clone()
                    part[last] += 0.5 if part.is_floating_point() else 1
                    assert not made.held_by(name, value), name
                    part[last] = held


def test_a_nan_is_held_as_the_nan_that_it_is():
    x = torch.tensor([1.0, float("nan")])
    held = contents.Contents(GELU, {"x": x})
    assert held.held_by("x", x.clone()) and not held.held_by("x", -x) and not held.held_by("x", x.half())
