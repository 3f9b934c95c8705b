"""What a command line comes to, and what it is refused for."""

import math

import pytest

from bench import cli, train
from bench.cli import CannotGoOn
from bench.trainer import loop
from bench.trainer import plan as plans
from bench.trainer.plan import micro_batches, need_same, plan_of
from tests.bench.trainer import runs


def made(*words, ranks: int = 1) -> plans.Plan:
    arguments = ["gpt2-tiny", "--kernels", "torch.eager", "--threads", "1", *map(str, words)]
    return plan_of(vars(train.parser().parse_args(arguments)), ranks)


@pytest.mark.parametrize(("total", "ranks", "count"), [(512, 1, 2), (512, 2, 1), (256, 1, 1), (2048, 4, 2)])
def test_micro_batches_make_the_total(total, ranks, count):
    assert micro_batches(total, 4, 64, ranks) == count


@pytest.mark.parametrize(
    ("total", "ranks", "nearest"),
    [
        (500, 1, "256, 512, 768"),
        (100, 1, "256, 512"),
        (1300, 2, "512, 1,024, 1,536, 2,048"),
        (10_000, 1, "9,728, 9,984"),
    ],
)
def test_an_impossible_total_is_refused_with_the_nearest(total, ranks, nearest):
    with pytest.raises(CannotGoOn, match="no whole number of micro-batches") as caught:
        micro_batches(total, 4, 64, ranks)
    assert caught.value.code == cli.USAGE
    assert f"the nearest are {nearest}" in str(caught.value)


def test_defaults_are_the_familys_recipe_and_one_micro_batch():
    found = made()
    assert found.model.recipe == runs.SMALL.recipe
    assert (found.B, found.T, found.micro_batches, found.total_batch) == (4, 32, 1, 128)
    assert found.total_steps(17) == 17


def test_the_optimizers_constants_reach_the_shape_of_its_call():
    found = made("--betas", "0.8,0.99", "--eps", "1e-6", "--weight-decay", "0", "--clip", "0")
    _, shape = found.model.update_shapes()
    assert (shape["beta1"], shape["beta2"], shape["eps"], set(shape["weight_decays"])) == (0.8, 0.99, 1e-6, {0.0})
    assert found.model.recipe.max_norm == math.inf  # no clipping
    (call,) = (c for id, c in found.race.calls.items() if id.layer == "adamw")
    assert call.shape["beta2"] == 0.99


def test_epochs_are_steps():
    assert made("--epochs", "2.5").total_steps(10) == 25
    assert made("--steps", "3").total_steps(10) == 3
    assert made("--epochs", "0.01").total_steps(10) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--steps", 3, "--epochs", 1), "one of them"),
        (("--no-masters",), "goes with --dtype bf16"),
        (("--hellaswag-every", 3), "needs --hellaswag FILE"),
        (("--seq", 999), "positions"),
        (("--recompute", "attention"), "unknown output to compute again"),
    ],
)
def test_what_makes_no_sense_is_refused(words, says):
    with pytest.raises(CannotGoOn, match=says) as caught:
        made(*words)
    assert caught.value.code == cli.USAGE


@pytest.mark.parametrize("words", [(user, used) for user, some in plans.USED_BY.items() for used in some])
def test_an_option_that_nothing_would_look_at_is_refused(words):
    user, used = words
    options = vars(train.parser().parse_args(["gpt2-tiny"]))
    plans.need_what_uses({}, options)
    plans.need_what_uses({used: "x"}, options | {user: 5})
    with pytest.raises(CannotGoOn, match=f"{used.replace('_', '-')} does nothing without") as caught:
        plans.need_what_uses({used: "x"}, options)
    assert caught.value.code == cli.USAGE


def test_that_is_said_before_anything_is_raced(monkeypatch, tmp_path):
    """And so is that the weights to start from are not there."""
    monkeypatch.setattr(loop.build, "choose_kernels", lambda race: pytest.fail("raced"))
    for words, says in ((("--val", "x"), "--val does nothing without --val-every"), (("--from", "x"), "x: no such")):
        with pytest.raises(CannotGoOn, match=says):
            train.main(["gpt2-tiny", *words, "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("words", [("--betas", "0.9"), ("--betas", "0.9,1"), ("--final-fraction", "2"), ("--lr", "0")])
def test_the_parser_refuses(words, capsys):
    with pytest.raises(SystemExit) as caught:
        train.parser().parse_args(["gpt2-tiny", *words])
    assert caught.value.code == cli.USAGE


def test_options_survive_being_written_down():
    found = made("--betas", "0.8,0.99", "--hellaswag", "x/y.bin", "--top-k", "0")
    again = plans.restored(plans.for_json(found.options))
    for name in found.options.keys() - plans.NOT_KEPT.keys():
        assert again[name] == found.options[name], name
    need_same(plans.for_json(found.options), found.options)


@pytest.mark.parametrize("name", plans.FIXED)
def test_each_of_these_may_not_change(name):
    recorded = plans.for_json(made().options)
    with pytest.raises(CannotGoOn, match=f"--{name.replace('_', '-')}: the run was begun with"):
        need_same(recorded, {**made().options, name: "another"})


def test_what_is_named_is_known_from_what_is_left_out():
    assert train.given(["gpt2-tiny", "--lr", "3e-4"]) == {"model": "gpt2-tiny", "lr": 3e-4}
    assert train.given([]) == {}
