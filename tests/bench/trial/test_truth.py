"""Truth and yards: what honest arithmetic is off, and which mistakes that shows."""

import dataclasses
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from bench.core import files, variants
from bench.core.arena import Arena
from bench.core.case import DTYPES, Case, Value, Values, cases_of, draw, each, map, one, truth_of
from bench.core.contents import Contents
from bench.trial import accuracy, cuts, truth
from bench.trial import yards as kept
from bench.trial.accuracy import Limits, Yard
from reference import contract
from reference.contract import Shape
from tests.fake_gpu import FakeGpu

EXACT = Limits()


def yard(truth: torch.Tensor, limits: Limits = EXACT, dtype: torch.dtype = torch.float32) -> Yard:
    return Yard("out", truth.double().flatten(), tuple(truth.shape), dtype, dtype, limits)


def test_a_yard_is_no_licence_for_whole_numbers():
    """Whatever plain torch is off by in one of them, there is none but the truth."""
    case = Case("sampling", "forward", {**contract.load("sampling").RAGGED[0], "dtype": "bf16"}, "test")
    (found,) = truth.worked_out(case, draw(case), variants.find(variants.discover(), "sampling", "torch.eager"))
    assert found.exact and found.limits == Limits()


NAN, INF = float("nan"), float("inf")


def test_what_is_not_finite_in_the_inputs_must_come_out_where_the_truth_has_it():
    case = next(c for c in cases_of("softmax", "forward", "fp32", [0]) if c.name == "ragged 3")
    values = draw(case)
    x = one(values["x"])
    x[3, 5], x[4, :], x[5, 1:] = NAN, -INF, -INF  # a NaN, a row that is masked wholly, one with one score left
    yards = truth.worked_out(case, values, eager("softmax"))
    honest = one(call(eager("softmax").load().forward, case, values)["out"])
    assert honest[3:5].isnan().all() and honest[5].sum() == 1
    assert not wrong(case, yards, {"out": honest})
    for row in (3, 4):
        assert wrong(case, yards, {"out": honest.index_fill(0, torch.tensor(row), 0.0)}) == ["out"]
    assert wrong(case, yards, {"out": honest.index_fill(0, torch.tensor(5), NAN)}) == ["out"]


# --- yards -----------------------------------------------------------------------------------------------------


def test_an_overflow_in_plain_torch_is_no_licence(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    case = Case("residual", "forward", {"N": 8, "dtype": "fp32"}, "test")
    inf = {"out": torch.full((8,), INF)}
    monkeypatch.setattr(truth, "_run_formula", lambda *_: inf)
    monkeypatch.setattr(truth, "_run_moved", lambda *_: inf)
    (found,) = truth.yards_of(case, draw(case), None)
    assert found.limits == Limits(noise=0.0)


def test_a_value_lost_beside_the_others_is_no_error_where_torch_is_exact_by_luck():
    # All in GELU's tails, where tanh is 1 or -1: torch gives a zero, an exponential gives 1e-35.
    case = Case("gelu", "forward", {"N": 7, "dtype": "fp32"}, "tails")
    values: Values = {"x": torch.tensor([30.0, -30, -40, 50, -60, 60, -25])}
    (yard,) = [
        dataclasses.replace(y, limits=truth._limits_of(truth._samples(case, values, [y], None, truth.CPU)[0], Limits()))
        for y in truth._truths(case, values)
    ]
    got = yard.truth[:].float()
    got[4] = -1.9e-35
    assert accuracy.judge(got, yard).check == "ok"
    got[4] = -1e-4
    assert accuracy.judge(got, yard).check == "inaccurate"


@pytest.mark.parametrize("layer", contract.layer_names())
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_inputs_are_rounded_first_and_every_output_gets_a_yard(layer, dtype):
    module = contract.load(layer)
    for phase in contract.phases_of(module):
        case = Case(layer, phase, {**module.RAGGED[0], "dtype": dtype}, "test")
        found = truth.brief(case, None)
        for t in contract.pass_of(module, phase).inputs:
            for part in each(found.values[t.name]):
                assert part.dtype == DTYPES[t.dtype_in(case.shape)]
        arena = Arena(case)
        wanted = sum(len(b) if isinstance(b, list) else b is not None for b in arena.outputs.values())
        assert len(found.yards) == wanted
        assert all(y.truth[:].isfinite().all() for y in found.yards)


def test_the_same_seed_draws_the_same_tensors_and_another_does_not():
    case = Case("layernorm", "backward", {**contract.load("layernorm").RAGGED[0], "dtype": "fp32"}, "test", seed=7)
    cases = (case, case, dataclasses.replace(case, seed=8))
    first, second, other = (one(draw(c)["x"]) for c in cases)
    assert torch.equal(first, second) and not torch.equal(first, other)


ALL = variants.discover()


def eager(layer: str) -> variants.Variant:
    return variants.find(ALL, layer, "torch.eager")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Yards are kept beside this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Tests run side by side, and these are worked out in their process."""
    torch.set_num_threads(1)


@functools.cache
def proved(layer: str, phase: str, dtype: str, name: str, seed: int = 0) -> tuple[Case, Values, list[Yard]]:
    """A case of the proof by its name ("ragged 0", "large_mean, ragged 0"), what goes in, and its yards."""
    case = next(c for c in cases_of(layer, phase, dtype, [seed]) if c.name == name)
    values = draw(case)
    return case, values, truth.yards_of(case, values, eager(layer))


def call(function: Callable[..., object], case: Case, values: Values) -> Values:
    """The outputs of a call of a variant's function."""
    arena = Arena(case)
    arena.load(values)
    arena.reset()
    arena.call(function)
    return arena.outputs


def wrong(case: Case, yards: list[Yard], outputs: Values) -> list[str]:
    """The names of the outputs that are not right."""
    tensors = [part for t in contract.pass_of(case.module, case.phase).outputs for part in each(outputs[t.name])]
    return [
        yard.name
        for yard, got in zip(yards, tensors, strict=True)
        if accuracy.judge(got, yard, sane=case.edit is None).check != "ok"
    ]


def test_numbers_by_which_torch_is_exact_blame_no_other_order_at_any_size(monkeypatch):
    """One that multiplies q and k by the root of the scale rounds where torch.eager, whose scale is 1/8, does not. What
    is coarser than moved inputs is wrong as ever; and plain values, of which there is no need, cost no second truth."""
    monkeypatch.setattr(truth, "DEAR", 0.0)
    shape = dict(B=1, T=512, NH=1, NKV=1, HS=64, causal=True, dtype="fp32")
    case = Case("attention", "forward", shape, "rising, large", 0, "rising")
    values = draw(case)
    yards = truth.yards_of(case, values, eager("attention"))
    honest = variants.find(ALL, "attention", "torch.sdpa_math").load().forward
    assert wrong(case, yards, call(honest, case, values)) == []
    coarse: Values = {**values, "q": map(values["q"], lambda q: q * (1 + 1e-4))}
    assert "out" in wrong(case, yards, call(honest, case, coarse))

    monkeypatch.setattr(truth, "_run_moved", lambda *_: pytest.fail("a second truth of plain values"))
    plain = dataclasses.replace(case, name="large", edit=None)
    assert truth.yards_of(plain, draw(plain), eager("attention"))


def written(case: Case, results: Values) -> Values:
    """A formula's results in the outputs' dtypes."""
    dtypes = {t.name: DTYPES[t.dtype_in(case.shape)] for t in contract.pass_of(case.module, case.phase).outputs}
    return {name: map(results.get(name), functools.partial(torch.Tensor.to, dtype=d)) for name, d in dtypes.items()}


def adamw(case: Case, values: Values, **changes: Value) -> Values:
    """AdamW in fp32, honest but for a change of the values."""
    return written(case, truth._run_formula(case, values | changes))


def half_skipped(new: Value, old: Value) -> Value:
    """Every second element as it was."""
    pairs = zip(each(new), each(old), strict=True)
    return [torch.where(torch.arange(n.numel()).view(n.shape) % 2 == 0, n, o) for n, o in pairs]


def no_decay(case, values):
    none = case.shape | {"weight_decays": [0.0] * len(case.shape["tensors"])}
    return adamw(dataclasses.replace(case, shape=none), values)


def no_update(case, values):
    return adamw(case, values) | {name: values[name] for name in ("params", "masters", "m", "v")}


def no_update_but_of_the_moments(case, values):
    return adamw(case, values) | {name: values[name] for name in ("params", "masters")}


def half_of_the_updates(case, values):
    new = adamw(case, values)
    return new | {name: half_skipped(new[name], values[name]) for name in ("params", "masters")}


def rounded_masters(case, values):
    new = adamw(case, values)
    return new | {"masters": map(new["masters"], lambda x: x.to(DTYPES[case.shape["dtype"]]).float())}


def no_bias_correction(case, values):
    return adamw(case, values, step=torch.tensor(1e9))


def correction_of_the_step_before(case, values):
    return adamw(case, values, step=values["step"] + 1)


ADAMW = [no_decay, no_update, no_update_but_of_the_moments, half_of_the_updates, rounded_masters, no_bias_correction]
ADAMW += [correction_of_the_step_before]


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])  # what is judged is fp32
@pytest.mark.parametrize("name", ["ragged 0", "ragged 1", "first_step, ragged 0"])
@pytest.mark.parametrize("cheat", ADAMW)
def test_an_optimizer_in_a_narrow_dtype_is_judged_by_its_state_in_fp32(cheat, name, dtype):
    case, values, yards = proved("adamw", "forward", dtype, name)
    assert not wrong(case, yards, adamw(case, values))
    decays = any(case.shape["weight_decays"])
    assert bool(wrong(case, yards, cheat(case, values))) == (cheat is not no_decay or decays)


STATISTICS = [
    ("layernorm", "mean"),
    ("layernorm", "rstd"),
    ("residual_layernorm", "mean"),
    ("residual_layernorm", "rstd"),
    ("rmsnorm", "rstd"),
    ("cross_entropy", "losses"),
    ("cross_entropy", "lse"),
    ("fused_classifier", "losses"),
    ("global_norm", "norm"),
    ("attention", "lse"),
]


@pytest.mark.parametrize("dtype", ["fp32", *(pytest.param(d, marks=pytest.mark.slow) for d in ("bf16", "fp16"))])
@pytest.mark.parametrize(("layer", "name"), STATISTICS)
def test_a_statistic_in_fp32_is_neither_missing_nor_a_hundredth_off(layer, name, dtype):
    # Each edit on the first shape that it says something at. The fused classifier's are cross entropy's.
    found = cases_of(layer, "forward", dtype, [0]) if layer != "fused_classifier" else []
    edits = {c.edit: c.name for c in reversed(found) if c.edit}
    for edit, told in [(None, "ragged 0"), *edits.items()]:
        case, values, yards = proved(layer, "forward", dtype, told)
        honest = call(eager(layer).load().forward, case, values)
        assert not wrong(case, yards, honest), edit
        (truth,) = (y.truth[:] for y in yards if y.name == name)
        if not truth[truth.isfinite()].any():
            continue  # all_zero's norm, and one that is infinite or NaN
        for factor in (0.0, 0.99, 1.01):
            outputs = honest | {name: one(honest[name]) * factor}
            if (layer, dtype, edit) == ("residual_layernorm", "bf16", "large_mean") and factor:
                continue  # residual_out is near 100, where bf16's unit is 0.5: moments of what was written are a % off
            assert wrong(case, yards, outputs) == [name], (edit, factor)


def test_torch_that_is_exact_by_luck_on_an_edit_is_no_yard_for_a_narrow_output():
    case, values, yards = proved("attention", "backward", "bf16", "all_equal, ragged 3")
    flash = call(variants.find(ALL, "attention", "torch.sdpa_flash").load().backward, case, values)
    assert not wrong(case, yards, flash)
    assert wrong(case, yards, flash | {"dv": one(flash["dv"]) * 1.05}) == ["dv"]


@pytest.mark.parametrize("name", ["all_equal, ragged 3", "ragged 3"])
def test_the_error_of_one_exponential_that_made_all_elements_is_one_error(name):
    """Scores that are all equal: an exponential that is off by 20 units in the last place is off everywhere alike."""
    case, values, yards = proved("attention", "backward", "fp32", name)
    assert case.alike == name.startswith("all_equal")
    honest = call(variants.find(ALL, "attention", "torch.eager").load().backward, case, values)
    off = [wrong(case, yards, honest | {"dv": one(honest["dv"]) * (1 + ulps * 2.0**-23)}) for ulps in (20, 100)]
    assert off == [[] if case.alike else ["dv"], ["dv"]]


def test_where_few_roundings_decide_more_draws_are_the_yard():
    """One key is seen alone: what its score is off by is in a whole row, and in one draw it may be nothing."""
    case, values, yards = proved("attention", "backward", "fp32", "huge_logit, ragged 7", seed=3)
    narrow = replace(case, shape=case.shape | {"dtype": "bf16"})
    draws = [truth._draws(c, yards) for c in (case, replace(case, edit=None), narrow)]
    assert draws[0] > draws[1] == draws[2] == 1
    flash = call(variants.find(ALL, "attention", "torch.sdpa_flash").load().backward, case, values)
    assert not wrong(case, yards, flash)
    assert wrong(case, yards, flash | {"dv": one(flash["dv"]) * (1 + 1e-3)}) == ["dv"]


def test_an_edits_few_large_elements_are_no_licence_for_the_others():
    truth = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    plain = yard(truth, dtype=torch.bfloat16)
    assert plain.typical == pytest.approx(1, rel=0.1)
    truth[:20], truth[20:30], truth[30:40] = 1e4, INF, NAN
    edited = yard(truth, dtype=torch.bfloat16)
    assert edited.rms > 1e3 and edited.typical == pytest.approx(1, rel=0.1)
    truth[:600] = 0
    assert yard(truth, dtype=torch.bfloat16).typical == 0


def test_an_edits_many_small_rows_make_no_noise_of_a_large_ones():
    """Scores that rise: nearly all of dv is 0, and torch's own error in the last rows is in proportion to them by luck.
    Partial sums in bf16 are as far off as they are on plain values."""
    case, values, yards = proved("attention", "backward", "bf16", "rising, ragged 6", seed=8)
    flash = call(variants.find(ALL, "attention", "torch.sdpa_flash").load().backward, case, values)
    assert not wrong(case, yards, flash)
    dv = one(flash["dv"]).clone()
    dv[:, -1] *= 1.05
    assert wrong(case, yards, flash | {"dv": dv}) == ["dv"]
    dv = one(flash["dv"]).clone()
    dv[:, : case.shape["T"] // 2] += 1e-3 * dv.abs().max()  # beside which they are nothing
    assert wrong(case, yards, flash | {"dv": dv}) == ["dv"]


def test_what_is_typical_beside_an_element_is_its_own_stretchs_and_few_large_ones_do_not_move_it():
    truth = torch.tensor([[3.0, 3.0, 3.0, 1e6], [NAN, 2.0, 2.0, -2.0], [0.0, 0.0, 0.0, 5.0]]).reshape(-1)
    found = accuracy._typical_beside(torch.cat([truth, torch.tensor([7.0])]), 4) * accuracy.NORMAL_MEDIAN
    assert found.tolist() == pytest.approx([3.0] * 4 + [2.0] * 4 + [0.0] * 4 + [7.0])


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_row_of_softmax_that_does_not_add_up_to_one_is_found(dtype):
    case, values, yards = proved("softmax", "forward", dtype, "ragged 3")
    honest = call(eager("softmax").load().forward, case, values)
    assert not wrong(case, yards, honest)
    for row in (0, 7, 32):
        out = one(honest["out"]).float()
        out[row] *= 1.01
        assert wrong(case, yards, {"out": out.to(DTYPES[dtype])}) == ["out"], row


@pytest.mark.parametrize("layer", contract.layer_names())
def test_one_element_by_twenty_times_the_typical_maximum_and_a_thousandth_that_is_missing_are_found(layer):
    for phase in contract.phases_of(contract.load(layer)):
        case, values, yards = proved(layer, phase, "fp32", "ragged 0")
        honest = call(getattr(eager(layer).load(), phase), case, values)
        assert not wrong(case, yards, honest)
        tensors = [part for t in contract.pass_of(case.module, phase).outputs for part in each(honest[t.name])]
        for yard, right in zip(yards, tensors, strict=True):
            errors = (right.double().flatten() - yard.truth[:]).abs()
            got = right.clone()
            position = int(torch.randint(got.numel(), ()))
            if yard.exact:
                got.view(-1)[position] += 1
                assert accuracy.judge(got, yard).check == "inaccurate", (yard.name, position)
                continue
            # Of few elements the maximum is a matter of luck: there it is that of all draws.
            seen = float(errors.max()) if len(errors) >= 128 else yard.limits.honest.absolute
            worst = max(seen, torch.finfo(got.dtype).eps / 2 * yard.peak)
            got.view(-1)[position] += 20 * worst
            assert accuracy.judge(got, yard).check == "inaccurate", (yard.name, position)
            assert accuracy.judge(right * (1 - 1e-3), yard).check == "inaccurate", yard.name


# --- what is kept ----------------------------------------------------------------------------------------------


def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes of what is worked out from now on: formula, moved, truth."""
    done: list[str] = []
    for name in ("_run_formula", "_run_moved", "truth_of"):
        monkeypatch.setattr(truth, name, noted(getattr(truth, name), name, done))
    return done


def noted(function: Callable[..., Value], name: str, done: list[str]) -> Callable[..., Value]:
    def wrapper(*args: object) -> Value:
        done.append(name)
        return function(*args)

    return wrapper


CASE = Case("layernorm", "forward", {**contract.load("layernorm").RAGGED[2], "dtype": "bf16"}, "test", 3)


def test_a_second_run_works_out_the_truth_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    done, values = count(monkeypatch), draw(CASE)
    first = truth.yards_of(CASE, values, eager("layernorm"))
    assert "_run_formula" in done and "_run_moved" in done
    done.clear()
    second = truth.yards_of(CASE, values, eager("layernorm"))
    assert done == ["truth_of"] and [y.limits for y in second] == [y.limits for y in first]
    for other in (
        (dataclasses.replace(CASE, seed=4), eager("layernorm")),
        (dataclasses.replace(CASE, edit="large_mean"), eager("layernorm")),
        (dataclasses.replace(CASE, shape=CASE.shape | {"dtype": "fp16"}), eager("layernorm")),
        (CASE, None),
        (CASE, variants.find(ALL, "layernorm", "torch.compile")),
    ):
        assert kept.recalled(other[0], other[1], "cpu", 3) is None
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert kept.recalled(CASE, eager("layernorm"), "cpu", 3) is None, "another plain torch"
    assert kept.recalled(CASE, eager("layernorm"), "cpu", 3)
    monkeypatch.setattr(torch, "__version__", "0")
    assert kept.recalled(CASE, eager("layernorm"), "cpu", 3) is None


def test_a_yard_is_kept_as_it_was(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    size = accuracy.Size(1.0, 2.0, 3.0, 4.0)
    whole = Limits(0.5, size, 0.25, 0.125, lean=0.1, spans=(Limits(1.0, size), Limits(2.0, lean=0.2)))
    kept.remember(CASE, None, "cpu", [whole, Limits()])
    assert kept.recalled(CASE, None, "cpu", 2) == [whole, Limits()]


def test_late_rows_of_causal_attention_have_a_yard_of_their_own():
    shape = {"B": 1, "T": 512, "NH": 2, "NKV": 2, "HS": 64, "causal": True, "dtype": "bf16"}
    found = {}
    for causal in (True, False):
        case = Case("attention", "forward", shape | {"causal": causal}, "test")
        out, lse = truth.worked_out(case, draw(case), eager("attention"))
        found[causal] = [limits.noise for limits in out.limits.spans]
        assert not lse.limits.spans  # its heads come first
    assert len(found[True]) == 8 and max(found[True][:4]) > max(found[True][4:])
    assert max(found[True]) > accuracy.UNEVEN * min(found[True]) and not found[False]


@pytest.mark.parametrize(
    "entry", ["[]", "3", '"x"', "[[0, [1, 1, 1], 0]]", '[[0, ["a", 1, 1, 1], 0]]', "[[0, 1, 2]]", "{}"]
)
def test_a_damaged_entry_counts_as_none(monkeypatch, tmp_path, entry):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    kept.remember(CASE, None, "cpu", [Limits()] * 3)
    assert kept.recalled(CASE, None, "cpu", 3) == [Limits()] * 3
    with kept._file(CASE).open("ab") as file:
        file.write(kept._line(kept.key_of(CASE, None, "cpu"), json.loads(entry)))
    assert kept.recalled(CASE, None, "cpu", 3) is None


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"3\n", b"[1]\n", b'["a", [2], 3]\n', b"[[], 2]\n", b"\xff\x00{\n", b'["a']
)
def test_lines_that_are_no_entry_are_left_out_and_half_of_one_is_waited_for(monkeypatch, tmp_path, line):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    file = kept._file(CASE)
    kept.remember(CASE, None, "cpu", [Limits()] * 3)
    with file.open("ab") as lines:
        lines.write(line)
    assert list(kept._entries(file)) == [kept.key_of(CASE, None, "cpu")]
    with file.open("ab") as lines:  # another process ends the line, or has one of its own
        lines.write(b'", 5]\n' if line and not line.endswith(b"\n") else kept._line("a", 5))
    assert kept._entries(file)["a"] == 5
    files.put(file, kept._line("b", 6))  # … or writes the file anew
    assert kept._entries(file) == {"b": 6}


def test_a_yardsticks_files_are_read_once(monkeypatch):
    """Not for each case, twice."""
    read: list[variants.Variant] = []

    def source_hash(variant: variants.Variant) -> str:
        read.append(variant)
        return variant.layer

    monkeypatch.setattr(variants.Variant, "source_hash", source_hash)
    kept._source_of.cache_clear()
    yardsticks = eager("layernorm"), eager("gelu"), None
    keys = {kept.key_of(case, v, "cpu") for v in yardsticks for case in (CASE, dataclasses.replace(CASE, seed=5))}
    kept._source_of.cache_clear()
    assert read == [*yardsticks[:2]] and len(keys) == 6


def test_what_is_kept_does_not_grow_without_end(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "KEPT", 3)
    for seed in range(5):
        kept.remember(dataclasses.replace(CASE, seed=seed), None, "cpu", [Limits()] * 3)
    found = [bool(kept.recalled(dataclasses.replace(CASE, seed=seed), None, "cpu", 3)) for seed in range(5)]
    assert found == [False, False, True, True, True] and len(kept._file(CASE).read_text().splitlines()) == 3


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path / "file"))
    assert truth.yards_of(CASE, draw(CASE), None)


def test_another_draw_is_judged_by_the_yard_of_the_first(monkeypatch):
    yards = truth.yards_of(CASE, draw(CASE), eager("layernorm"))
    other = dataclasses.replace(CASE, seed=99)
    values = draw(other)
    done = count(monkeypatch)
    found = truth.yards_of(other, values, eager("layernorm"), like=yards)
    assert done == ["truth_of"]
    assert not wrong(other, found, call(eager("layernorm").load().forward, other, values))
    assert all(0 < y.limits.noise < z.limits.noise for y, z in zip(yards[:1], found[:1], strict=True))
    assert len(wrong(other, yards, call(eager("layernorm").load().forward, other, values))) == 3  # another truth


def test_several_threads_may_work_out_yards_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    cases = [dataclasses.replace(CASE, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: truth.yards_of(case, draw(case), eager("layernorm")), cases))
    for case, yards in zip(cases, found, strict=True):
        assert kept.recalled(case, eager("layernorm"), "cpu", 3) == [y.limits for y in yards]
        again = truth.yards_of(case, draw(case), eager("layernorm"))
        assert all(torch.equal(a.truth[:], b.truth[:]) for a, b in zip(yards, again, strict=True))


def test_truth_of_narrow_outputs_is_kept_in_fp32_and_of_others_in_fp64():
    kept = {y.name: y.truth.dtype for y in truth.yards_of(CASE, draw(CASE), None)}
    assert kept == {"out": torch.float32, "mean": torch.float64, "rstd": torch.float64}


def test_a_statistic_of_an_output_may_be_of_what_was_written():
    # Moments of residual_out as it was rounded to bf16: 100 has a unit of 0.5 there.
    case, values, yards = proved("residual_layernorm", "forward", "bf16", "large_mean, ragged 0")
    chained = truth._run_stored(case, values)
    plain = truth._run_formula(case, values)
    assert chained and not torch.allclose(one(chained["rstd"]), one(plain["rstd"]), rtol=1e-3)
    for results in (chained, plain):
        assert not wrong(case, yards, written(case, results))
    assert truth._run_stored(*proved("adamw", "forward", "bf16", "ragged 0")[:2]) is None  # masters are not rounded
    assert truth._run_stored(*proved("layernorm", "forward", "bf16", "large_mean, ragged 0")[:2]) is None


# --- on a GPU --------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A made-up one, on which every case is large; tensors are compared a few thousand at a time."""
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(truth, "LARGE", 0)
    monkeypatch.setattr(truth, "DRAWN_HERE", 0)
    monkeypatch.setattr(truth, "YARD", 1 << 14)
    monkeypatch.setattr(cuts, "LEAST", 1 << 10)
    made = FakeGpu()
    yield truth.Where(made.place, "made up", made, piece_bytes=1 << 20, kept_bytes=0)
    made.close()


ALIKE = ("layernorm", "residual_layernorm", "residual_rmsnorm", "matmul")  # rmsnorm and gemv are cut as these are


def cut_case(layer: str, phase: str, dtype: str, rows: int = 7) -> Case:
    module = contract.load(layer)
    shape = contract.overwriting(module, phase, module.RAGGED[-1 if layer == "gelu" else 0], dtype)
    if layer == "softmax":
        shape |= {"S": 64, "R": 64 * rows, "causal": True}
    elif layer in ("cross_entropy", "fused_classifier"):
        shape |= {"B": rows, "V": 769, "VP": 800}
    elif layer == "attention":
        shape |= {"B": rows, "T": 40}
    elif "B" in shape:
        shape |= {"B": rows}
    return Case(layer, phase, shape, "cut", seed=11)


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        *(pytest.param(layer, "bf16", marks=[pytest.mark.slow] * (layer in ALIKE)) for layer in contract.layer_names()),
        *(("layernorm", "fp32"), ("softmax", "fp32")),
    ],
)
def test_in_pieces_honest_outputs_pass_and_one_wrong_element_fails(gpu, layer, dtype):
    for phase in contract.phases_of(contract.load(layer)):
        case = cut_case(layer, phase, dtype)
        if case.shape.get("accumulate") is False:
            case = dataclasses.replace(case, shape=case.shape | {"accumulate": True})
        contents = Contents(case, truth.drawn(case, gpu), seed=21)
        yards = truth.yards_of(case, contents, eager(layer), gpu)
        whole = truth._truths(case, contents.whole(), truth.Where(piece_bytes=0))
        again = [isinstance(y.truth, cuts.Recomputed) for y in yards]
        cut, lists = cuts.cut_of(case), layer == "adamw"
        assert again == [lists or (cut is not None and y.name in cut.names(case)) for y in yards]
        for mine, right in zip(yards, whole, strict=True):
            scale = max(right.peak, 1e-30)
            assert torch.allclose(mine.truth[:].double(), right.truth[:].double(), rtol=1e-6, atol=1e-9 * scale), (
                mine.name
            )
            assert mine.rms == pytest.approx(right.rms) and mine.peak == pytest.approx(right.peak)
        honest = call(getattr(eager(layer).load(), phase), case, contents.whole())
        assert not wrong(case, yards, honest)
        for t in contract.pass_of(case.module, phase).outputs:
            for i, part in enumerate(each(honest[t.name])):
                name = f"{t.name}[{i}]" if t.many else t.name
                yard = next(y for y in yards if y.name == name)
                flat = part.reshape(-1)
                flat[-1] = flat[-1] * 1.1 + 5 * yard.rms
                part.copy_(flat.view(part.shape))
                found = accuracy.judge(part, yard)
                assert found.check == "inaccurate", name
                assert part.numel() == 1 or str([size - 1 for size in part.shape]) in found.evidence, found.evidence


def test_on_a_cpu_large_lists_are_judged_without_their_truth_being_kept(monkeypatch):
    monkeypatch.setattr(truth, "LARGE", 0)
    monkeypatch.setattr(truth, "YARD", 1 << 8)
    case = cut_case("adamw", "forward", "bf16")
    contents = Contents(case, truth.drawn(case), seed=21)
    yards = truth.worked_out(case, contents, eager("adamw"), truth.Where(piece_bytes=1 << 15))
    assert all(isinstance(y.truth, cuts.Recomputed) for y in yards)
    whole = truth._truths(case, contents.whole(), truth.Where(piece_bytes=0))
    honest = call(eager("adamw").load().forward, case, contents.whole())
    assert not wrong(case, yards, honest)
    for mine, right in zip(yards, whole, strict=True):
        assert torch.equal(mine.truth[:], right.truth[:]), mine.name
        name, _, place = mine.name.partition("[")
        got = each(honest[name])[int(place[:-1])].clone()
        got.view(-1)[-1] += 5 * mine.rms
        assert accuracy.judge(got, mine).check == "inaccurate", mine.name
        assert isinstance(mine.truth, cuts.Recomputed) and isinstance(mine.truth.formula, cuts.OfLists)
        assert mine.truth.formula.held == [mine.truth.formula], "one piece of one tensor"


def test_what_is_not_finite_is_found_in_any_piece(gpu):
    case = cut_case("softmax", "forward", "bf16")
    contents = Contents(case, truth.drawn(case, gpu))
    (yard,) = truth.yards_of(case, contents, eager("softmax"), gpu)
    honest = one(call(eager("softmax").load().forward, case, contents.whole())["out"])
    for row in (0, 200, 447):
        got = honest.clone()
        got[row, 0] = NAN
        found = accuracy.judge(got, yard)
        assert found.check == "not_finite" and f"[{row}, 0]" in found.evidence


def seen_by(monkeypatch: pytest.MonkeyPatch, name: str, what: Callable[..., int]) -> list[int]:
    """What a function of truth.py is called with from now on."""
    function, seen = getattr(truth, name), []

    def wrapper(*args: object) -> object:
        seen.append(what(*args))
        return function(*args)

    monkeypatch.setattr(truth, name, wrapper)
    return seen


def test_the_yard_of_a_large_shape_is_that_of_some_of_its_rows(gpu, monkeypatch):
    case = cut_case("attention", "forward", "bf16", rows=16)
    contents = Contents(case, truth.drawn(case, gpu))
    seen = seen_by(monkeypatch, "_run_eager", lambda c, *_: c.shape["B"])
    part = truth.yards_of(case, contents, eager("attention"), gpu)
    whole = truth.worked_out(case, contents.whole(), eager("attention"))
    assert seen == [2, 16]
    for a, b in zip(part, whole, strict=True):
        # Of few elements the largest error, and the noise by it, are smaller: the limits have room for that.
        assert 0.3 < a.limits.noise / b.limits.noise <= 1.5, a.name
        assert 0.3 < a.limits.honest.absolute / b.limits.honest.absolute <= 1.5, a.name


def test_a_yardstick_that_a_gpu_has_no_room_for_is_left_out(gpu, monkeypatch):
    def run(*_: object) -> Values:
        raise torch.OutOfMemoryError("CUDA out of memory")

    case = cut_case("layernorm", "backward", "fp32")
    contents = Contents(case, truth.drawn(case, gpu))
    monkeypatch.setattr(truth, "_run_eager", run)
    yards = truth.yards_of(case, contents, eager("layernorm"), gpu)
    honest = call(eager("layernorm").load().backward, case, contents.whole())
    assert not wrong(case, yards, honest)
    with pytest.raises(torch.OutOfMemoryError):
        truth.worked_out(case, contents.whole(), eager("layernorm"))


def test_a_sum_over_all_rows_is_held_to_the_yard_of_all_of_them(gpu, monkeypatch):
    case = cut_case("layernorm", "backward", "fp32")
    contents = Contents(case, truth.drawn(case, gpu))
    rows = seen_by(monkeypatch, "_run_formula", lambda c, _: c.shape["B"])
    truth.yards_of(case, contents, None, gpu)
    assert sum(rows) >= 7 and max(rows) < 7


def test_what_is_large_is_drawn_on_the_device_and_what_is_small_or_edited_by_the_cpu(gpu, monkeypatch):
    case = cut_case("cross_entropy", "backward", "bf16")
    here = truth.drawn(case, gpu)
    plain = draw(case)
    # The made-up one's generator is the CPU's; what forward saves was worked out in pieces.
    assert here.keys() == plain.keys() and all(torch.equal(one(here[name]), one(plain[name])) for name in plain)
    assert all(x.is_contiguous() for value in here.values() for x in each(value))
    places: list[str] = []

    def noted_draw(case: Case, place: str, saved: object) -> Values:
        places.append(place)
        return {}

    monkeypatch.setattr(truth, "draw", noted_draw)
    there = dataclasses.replace(gpu, place="cuda")
    truth.drawn(case, there)
    truth.drawn(dataclasses.replace(case, edit="huge_logit"), there)
    monkeypatch.setattr(truth, "DRAWN_HERE", 1 << 20)
    truth.drawn(case, there)
    assert places == ["cuda", "cpu", "cpu"]


# --- in blocks -------------------------------------------------------------------------------------------------

LARGE_ENOUGH: dict[tuple[str, str], Shape] = {
    ("gelu", "backward"): dict(N=3 * accuracy.BLOCK + 77),
    ("swiglu", "forward"): dict(M=700, H=96),
    ("layernorm", "backward"): dict(B=75, T=16, C=64, eps=1e-5, dresidual=False, accumulate=True),  # sums, too
}


@pytest.mark.parametrize(("layer", "phase"), LARGE_ENOUGH)
def test_truth_in_blocks_is_the_truth_of_the_whole(layer, phase, monkeypatch):
    monkeypatch.setattr(truth, "IN_BLOCKS", 1e5)
    monkeypatch.setattr(truth, "MANY", 1)  # in two threads
    case = Case(layer, phase, {**LARGE_ENOUGH[layer, phase], "dtype": "fp32"}, "timed", 3)
    contents = Contents(case, draw(case), 7)
    found, whole = truth._truth_in_blocks(case, contents), truth_of(case, contents.whole())
    assert found is not None and found.keys() == whole.keys()
    for name, value in whole.items():
        assert one(found[name]).dtype == torch.float64 and one(found[name]).shape == one(value).shape
        assert torch.allclose(one(found[name]), one(value), rtol=1e-12, atol=1e-12), name


def test_where_a_weight_is_larger_than_a_block_nothing_is_cut(monkeypatch):
    monkeypatch.setattr(truth, "IN_BLOCKS", 1e5)
    shape = dict(M=256, K=256, N=256, epilogue="none", dgelu=False, dtype="fp32")
    case = Case("matmul", "forward", shape, "timed", 3)
    assert truth._truth_in_blocks(case, Contents(case, draw(case))) is None
