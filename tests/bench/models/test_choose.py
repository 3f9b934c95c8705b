"""Who may train: of candidates those alone that have every call of their layer in the step."""

from types import SimpleNamespace
from typing import Any

import pytest

from bench import cli
from bench.cli import CannotGoOn
from bench.core.variants import discover
from bench.machine.compared import Lost
from bench.models import CallId
from bench.models.choose import Cache, Times, fastest, race, race_in, race_on, unraced
from bench.models.program import program, step_calls
from reference.models.gpt2 import GPT2

SMALL = GPT2("small", L=3, NH=3, C=48, max_t=24, v=300)
B, T = 2, 8
LACKS = "gelu epilogue"
PARTIAL = f'''"""eager without the epilogue that one of the step's four products has."""

from kernels import Unavailable
from kernels.torch.matmul import eager


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    if epilogue == "bias_gelu":
        raise Unavailable("{LACKS}")
    eager.forward(x, weight, bias, epilogue, out=out, pre_gelu=pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    eager.backward(dout, x, weight, x_pre_gelu, accumulate, dx=dx, dweight=dweight, dbias=dbias)
'''


@pytest.fixture
def pool(tmp_path):
    """torch.partial beside torch.eager, for every matmul of the step."""
    (tmp_path / "torch" / "matmul").mkdir(parents=True)
    (tmp_path / "torch" / "matmul" / "partial.py").write_text(PARTIAL)
    found = [v for v in discover((tmp_path,)) if (v.layer, v.stem) in (("matmul", "eager"), ("matmul", "partial"))]
    assert [v.stem for v in found if v.backend == "torch"] == ["eager", "partial"]
    calls = step_calls(SMALL, B, T, "fp32")
    return {id: [v for v in found if v.backend == "torch"] for id in calls if id.layer == "matmul"}


def quicker(times: Times) -> Times:
    """The same, with torch.partial ahead wherever it was timed."""
    for ms in times.ms.values():
        ms |= {name: 1e-9 for name in ms if name == "torch.partial"}
    return times


def test_what_lacks_a_call_of_the_step_serves_none_of_its_layer(pool, tmp_path):
    times = quicker(race(program(SMALL, B, T, "fp32"), pool))
    lacking = [str(id) for id, skipped in times.skipped.items() if skipped]
    assert lacking and all("forward" in id for id in lacking) and len(lacking) < len(pool)
    assert all(LACKS in why for skipped in times.skipped.values() for why in skipped.values())
    assert {v.name for v in fastest(pool, times).values()} == {"torch.eager"}

    shapes = {id: call.shape for id, call in step_calls(SMALL, B, T, "fp32").items()}
    cache = Cache(tmp_path / "times.json", ["here"])
    cache.keep(pool, shapes, times)
    again = Cache(tmp_path / "times.json", ["here"]).take(pool, shapes)
    assert again.skipped == times.skipped, "what is remembered says so too"
    assert {v.name for v in fastest(pool, again).values()} == {"torch.eager"}


def test_where_all_that_the_step_asks_is_there_the_quicker_one_serves(pool):
    asked = {id: found for id, found in pool.items() if id.shape != "fc"}
    times = quicker(race(program(SMALL, B, T, "fp32"), asked, hopeless=float("inf")))
    assert not any(times.skipped.values())
    assert {v.name for v in fastest(asked, times).values()} == {"torch.partial"}


def test_another_failure_costs_its_own_call_alone(pool):
    one, other, *_ = pool
    names = {"torch.eager": 2.0, "torch.partial": 1.0}
    times = Times({id: dict(names) for id in pool})
    del times.ms[one]["torch.partial"]
    times.skipped[one] = {"torch.partial": "OSError: no such card"}
    choice = fastest(pool, times)
    assert (choice[one].name, choice[other].name) == ("torch.eager", "torch.partial")


def test_a_layer_that_nobody_has_whole_is_refused_with_what_is_missing(pool):
    call = CallId("matmul", "fc", "forward")
    times = Times({id: {"torch.partial": 1.0} for id in pool}, {call: {"torch.partial": f"Unavailable: {LACKS}"}})
    with pytest.raises(CannotGoOn, match=f"torch.partial: Unavailable: {LACKS}") as refused:
        fastest(pool, times)
    assert refused.value.code == cli.CANNOT_RUN


def test_a_call_that_no_time_was_left_for_is_served_by_who_is_quickest_at_the_nearest(pool):
    nothing = race(program(SMALL, B, T, "fp32"), pool, stop=-1)
    assert not nothing.ms and {v.name for v in fastest(pool, nothing).values()} == {"torch.eager"}
    one, other = CallId("matmul", "qkv", "forward"), CallId("matmul", "fcproj", "forward")
    times = Times({one: {"torch.eager": 2.0, "torch.partial": 1.0}}, {other: {"torch.partial": "it hung"}})
    choice = fastest(pool, times)
    assert choice.pop(other).name == "torch.eager", "not by who is out at it"
    assert {v.name for v in choice.values()} == {"torch.partial"}
    assert unraced(other, pool[other], times) and not unraced(one, pool[one], times)


def test_a_race_goes_on_without_who_ended_its_process():
    """Who is out at one call is out at those that were raced before it too; what is done is not raced again."""
    first, second = (CallId("gelu", name, "forward") for name in ("a", "b"))
    good, bad = (v for v in discover() if v.layer == "gelu" and v.name in ("torch.eager", "cpu.naive"))
    pool = {first: [good, bad], second: [good, bad]}
    asked: list[dict[CallId, list[str]]] = []
    said: list[str] = []
    process: Any = SimpleNamespace(heard=[])

    def ask(command, pool, **limits):
        asked.append({id: [v.name for v in some] for id, some in pool.items()})
        if len(asked) == 1:
            process.heard = [Times({first: {good.name: 1.0, bad.name: 0.5}}), (second, bad.name)]
            raise Lost("it died")
        return Times({second: {good.name: 2.0}})

    def once(left):
        return race_in(process, left, lambda told: None, False, 1.0, 1.0)

    process.ask = ask
    times = race_on(pool, once, said.append)
    assert asked == [{id: [good.name, bad.name] for id in pool}, {second: [good.name]}]
    assert times.ms == {first: {good.name: 1.0}, second: {good.name: 2.0}}
    assert times.skipped == {id: {bad.name: "it died"} for id in pool}
    assert said == [f"{bad.name} of {second} is out: it died"]
    assert race_on(pool, lambda left: None, said.append) == Times(), "no time was left"


def test_who_ended_its_process_before_any_candidate_was_tried_is_nobody():
    def ask(command, **how):
        raise Lost("it died")

    process: Any = SimpleNamespace(heard=[], ask=ask)
    with pytest.raises(Lost, match="it died"):
        race_in(process, {}, lambda told: None, False, 1.0, 1.0)
