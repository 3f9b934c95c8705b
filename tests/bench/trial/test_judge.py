"""The judge: truth in its own process, which is begun anew where somebody ends it."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import HOME
from bench.core.arena import Arena, handed_bytes
from bench.core.case import Case, Values, draw, one
from bench.core.process import ProcessFailed
from bench.core.shared import Box, opened, values_in
from bench.core.variants import discover, find
from bench.machine.devices import open_device
from bench.trial import accuracy, checks, cuts, truth
from bench.trial import prove as proof
from bench.trial.checks import Verdict
from bench.trial.judge import AS_DRAWN, Handed, Judge, JudgeRoom
from bench.trial.room import Setting
from reference import contract
from tests.fake_gpu import FakeGpu, FakeIpc

CASE = Case("residual", "forward", {"N": 1000, "dtype": "fp32"}, "test", seed=4)
EAGER, EAGER_SOFTMAX = (find(discover(), layer, "torch.eager") for layer in ("residual", "softmax"))


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def handed(judge: Judge, change=lambda out: None, seed: int = 0) -> tuple[Box, Handed]:
    """What an honest call leaves, changed."""
    given = judge.given(CASE)
    values = values_in(opened(given.path, given.size), given.table)
    arena = Arena(CASE, seed=7)
    arena.load(values, seed)
    arena.reset(seed=9)
    out = one(arena.outputs["out"])
    out.copy_(one(arena.inputs["a"]) + one(arena.inputs["b"]))
    probes = [p.plain() for p in arena.probe()]
    change(out)
    box = Box(arena.size())
    arena.hand_back(box.bytes)
    return box, Handed(box.path, box.size, 0, None, 7, 9, probes)


def tail(out):
    out[-1] += 1e-3


def outside(out):
    out.as_strided((1,), (1,), out.storage_offset() + 1000)[0] = 1


def later(out):
    out.add_(1)


@pytest.mark.parametrize(("change", "check"), [(lambda out: None, "ok"), (outside, "out_of_bounds"), (later, "late")])
def test_it_looks_at_everything_that_is_handed_back(judge, change, check):
    judge.prepare([CASE], EAGER)
    box, left = handed(judge, change)
    assert judge.judge(CASE, left).check == check
    box.close()


def test_one_wrong_element_is_enough(judge):
    judge.prepare([CASE], EAGER)
    box, left = handed(judge, tail)
    quiet = Handed(left.path, left.size, 0, None, 7, 9, [])
    found = judge.judge(CASE, quiet)
    assert found.check == "inaccurate" and "[999]" in found.evidence
    box.close()


def test_contents_that_a_seed_makes_have_their_own_truth(judge):
    timed = Case(CASE.layer, CASE.phase, CASE.shape, "timed", seed=1)
    given = judge.pool(timed, EAGER, [5, 6], [(1, 123)])
    assert len(given) == 2
    values = values_in(opened(given[1].path, given[1].size), given[1].table)
    arena = Arena(timed, seed=7)
    arena.load(values, 123)
    arena.reset(seed=9)
    one(arena.outputs["out"]).copy_(one(arena.inputs["a"]) + one(arena.inputs["b"]))
    box = Box(arena.size())
    arena.hand_back(box.bytes)
    left = Handed(box.path, box.size, 0, None, 7, 9, [])
    assert judge.judge(timed, left, (1, 123)).ok
    arena.load(values, 124)  # other contents than it says
    arena.hand_back(box.bytes)
    assert judge.judge(timed, left, (1, 123)).check == "input_changed"


def test_a_structured_case_comes_behind_the_draws_and_has_its_own_truth_and_yard():
    timed = Case("softmax", "forward", {"R": 4, "S": 64, "causal": False, "dtype": "fp32"}, "timed", seed=1)
    room = JudgeRoom(0)
    for edit in ("huge_logit", "all_equal"):  # of the next race another one
        hard = replace(timed, edit=edit)
        assert len(room.draws(timed, [5, 6], hard)) == 3
        room.truths(timed, EAGER_SOFTMAX, [(0, 7), (2, 0)])
        known = room.known[str(timed)]
        assert [known.case_of(content).edit for content in ((0, 7), (1, 9), (2, 0))] == [None, None, edit]
        (plain,), (yard,) = (known.yards[content] for content in ((0, 7), (2, 0)))
        (own,) = truth.yards_of(hard, draw(hard), EAGER_SOFTMAX)
        assert isinstance(yard.truth, torch.Tensor) and isinstance(own.truth, torch.Tensor)
        assert torch.equal(yard.truth, own.truth) and yard.limits == own.limits != plain.limits
        assert torch.equal(one(known.draws[0]["x"]), one(draw(replace(timed, seed=5))["x"]))


@pytest.mark.parametrize(
    ("content", "first", "looks"),
    [
        ((1, 123), Verdict("inaccurate", "off", accuracy.K), 2),
        ((1, 123), Verdict("inaccurate", "far off", 100 * accuracy.K), 1),
        ((1, 123), Verdict("unwritten", "poison"), 1),
        (AS_DRAWN, Verdict("inaccurate", "off", accuracy.K), 1),  # a yard of its own already
    ],
)
def test_what_is_near_the_limit_by_the_yard_of_other_contents_is_judged_by_its_own(monkeypatch, content, first, looks):
    room, verdicts, yards = JudgeRoom(0), [first, Verdict()], []
    room.draws(CASE, [5, 6])
    room.truths(CASE, EAGER, [(0, 7), (1, 123), AS_DRAWN])
    monkeypatch.setattr(truth, "worked_out", lambda case, contents, yardstick, where: [contents, yardstick])
    monkeypatch.setattr(truth, "let_go", lambda yards: None)
    monkeypatch.setattr(room, "laid_out", lambda *_: SimpleNamespace())

    def inspect(arena, brief, probes) -> Verdict:
        yards.append(brief.yards)
        return verdicts.pop(0)

    monkeypatch.setattr(checks, "inspect", inspect)
    found = room.judge(CASE, content, Handed("", 0, 0, None, 7, 9, []))
    assert len(yards) == looks and found.ok == (looks == 2)
    if looks == 2:
        contents, yardstick = yards[1]
        assert (contents.seed, yardstick) == (123, EAGER)
    room.forget()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_judge_that_somebody_ends_or_stops_goes_on(judge, number):
    judge.prepare([CASE], EAGER)
    box, left = handed(judge)
    assert judge.judge(CASE, left).ok
    os.kill(judge.start().process.pid, number)
    assert judge.judge(CASE, left).ok
    box.close()


def test_what_a_killed_judge_had_drawn_is_drawn_again(judge):
    judge.prepare([CASE], EAGER)
    before = judge.given(CASE)
    process = judge.start().process
    os.kill(process.pid, signal.SIGKILL)
    process.join(5)
    with pytest.raises(OSError):
        opened(before.path, before.size)
    box, left = handed(judge)
    assert judge.judge(CASE, left).ok
    box.close()


def test_truth_of_a_proof_is_worked_out_while_nobody_asks_and_not_while_somebody_is_timed():
    room = JudgeRoom(1)
    given = room.prepare([CASE, replace(CASE, name="another", seed=5)], EAGER, truth_too=True)
    assert len(given) == 2 and not any(known.yards for known in room.known.values()), "a variant can be called already"
    assert room.idle() and [len(known.yards) for known in room.known.values()] == [1, 0]
    room.rest()
    assert not room.idle() and [len(known.yards) for known in room.known.values()] == [1, 0]
    room.forget()


def test_what_cannot_be_drawn_is_nobodys_fault_but_an_error(judge):
    with pytest.raises(ProcessFailed, match="the truth could not be worked out"):
        judge.pool(Case("residual", "forward", {"M": 1, "dtype": "fp32"}, "no such size"), EAGER, [1])


def test_what_cannot_be_drawn_is_told_to_who_asks_for_it_and_to_nobody_who_comes_by():
    """As where two lanes prove: the other takes the answer that it was not waiting for."""
    bad = replace(CASE, shape={"M": 1, "dtype": "fp32"}, name="no such size")
    with Judge(1) as judge:
        judge.prepare([bad], EAGER)
        judge.prepare([CASE], EAGER)
        assert judge.given(CASE)
        for _ in range(2):
            with pytest.raises(ProcessFailed, match="the truth could not be worked out: KeyError"):
                judge.given(bad)


# --- on a GPU --------------------------------------------------------------------------------------------------

VARIANTS = HOME / "tests" / "evil"
GPU = "tests.fake_gpu:FakeGpu"


@pytest.fixture
def card(monkeypatch):
    """A judge that works on a made-up GPU, and that device as a variant's process has it."""
    with Judge(1, GPU) as judge:
        judge.prepare([CASE], EAGER)
        yield judge


def on_card(judge: Judge, change=lambda memory: None, number: int = 0) -> Handed:
    """What an honest call leaves in the judge's window; `change` is done there afterwards."""
    given = judge.given(CASE)
    assert given.window and not given.path
    with FakeIpc().opened(given.window, given.size) as memory:
        values: Values = {name: one(value).clone() for name, value in values_in(memory, given.table).items()}
        arena = Arena(CASE, seed=7)
        arena.load(values)
        arena.reset(seed=9)
        one(arena.outputs["out"]).copy_(one(arena.inputs["a"]) + one(arena.inputs["b"]))
        probes = [p.plain() for p in arena.probe()]
        start = number * arena.size()
        arena.hand_back(memory[start:])
        change(memory[start : start + arena.size()])
        end = start + arena.size()
        del memory
    return Handed("", end, start, None, 7, 9, probes, window=given.window)


def test_on_a_gpu_a_call_is_judged_in_the_judges_window(card):
    assert card.judge(CASE, on_card(card)).ok
    assert card.judge(CASE, on_card(card, number=1)).ok  # two of a small one have room
    assert card.same(CASE, on_card(card), on_card(card))

    def last_of_out(memory):
        memory[memory.numel() - 4096 - 64 : memory.numel() - 4096] += 1

    assert card.judge(CASE, on_card(card, last_of_out)).check in ("inaccurate", "late", "not_finite", "out_of_bounds")
    assert card.judge(CASE, on_card(card, lambda memory: memory.zero_())).check == "out_of_bounds"


def test_whoever_spoils_the_window_spoils_nothing_that_the_judge_keeps(card):
    given = card.given(CASE)
    with FakeIpc().opened(given.window, given.size) as memory:
        memory.fill_(7)
        del memory
    assert card.judge(CASE, on_card(card)).ok, "inputs are laid anew for the next one"


def test_a_gpus_judge_that_is_killed_is_begun_anew_and_what_lay_with_it_is_told_to_be_lost(card):
    left = on_card(card)
    process = card.start().process
    os.kill(process.pid, signal.SIGKILL)
    process.join(5)
    with pytest.raises(ProcessFailed, match="lost with the judge"):
        card.judge(CASE, left)
    assert card.judge(CASE, on_card(card)).ok


def test_contents_of_a_timed_case_are_judged_on_a_gpu(card):
    timed = Case(CASE.layer, CASE.phase, CASE.shape, "timed", seed=1)
    first, second = card.pool(timed, EAGER, [5, 6], [(1, 123)]) or card.draws_of(timed)
    assert first.window == second.window and first.table != second.table
    with FakeIpc().opened(second.window, second.size) as memory:
        values: Values = {name: one(value).clone() for name, value in values_in(memory, second.table).items()}
        arena = Arena(timed, seed=7)
        arena.load(values, 123)
        arena.reset(seed=9)
        one(arena.outputs["out"]).copy_(one(arena.inputs["a"]) + one(arena.inputs["b"]))
        arena.hand_back(memory)
        del memory
    left = Handed("", second.size, 0, None, 7, 9, [], window=second.window)
    assert card.judge(timed, left, (1, 123)).ok
    means = card.means()
    assert means and means["free_bytes"] == 1 << 30 and means["flops_per_s"] > 0 and means["bytes_per_s"] > 0


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (GPU, ()),
        ("tests.fake_gpu:Refusing", ("cannot be shared", "801")),
        ("tests.fake_gpu:Unmapped", ("cannot be mapped", "201")),
        ("tests.fake_gpu:UnmappedLater", ("outputs went through the host's memory", "201")),
    ],
)
def test_where_memory_cannot_be_shared_all_goes_through_the_hosts_and_a_note_says_why(monkeypatch, device, says):
    monkeypatch.setattr(proof, "cases_of", lambda *_, **__: [CASE, replace(CASE, name="another", seed=5)])
    variant = find(discover((VARIANTS,)), "residual", "torch.eager")
    with Judge(1, device) as judge:
        (found,) = proof.prove(variant, ("forward",), "fp32", [0, 1], judge, Setting(device, threads=1), EAGER)
    assert found.ok and found.cases == 2
    assert any(all(word in note for word in says) for note in found.notes) if says else not found.notes
    with Judge(1, device) as judge:  # and what is wrong is wrong, whichever way it came
        wrong = find(discover((VARIANTS,)), "residual", "torch.zeros")
        (found,) = proof.prove(wrong, ("forward",), "fp32", [0, 1], judge, Setting(device, threads=1), EAGER)
    assert found.check == "inaccurate"


@pytest.fixture
def tight(monkeypatch, tmp_path):
    """The inside of a judge on a card with little memory, in this process."""
    monkeypatch.setenv("LAYERBENCH_CACHE", str(tmp_path))
    for module, name in ((truth, "LARGE"), (truth, "DRAWN_HERE"), (truth, "YARD"), (cuts, "LEAST")):
        monkeypatch.setattr(module, name, getattr(module, name))  # what the device sets is set back
    room = JudgeRoom(1, "tests.fake_gpu:Tight")
    room.where = replace(room.where, piece_bytes=1 << 20, kept_bytes=1 << 16)
    yield room
    room.forget()
    assert isinstance(room.device, FakeGpu)
    room.device.close()
    open_device.cache_clear()


@pytest.mark.parametrize("layer", ["fused_classifier", "cross_entropy"])
def test_a_judge_takes_little_more_memory_than_what_it_was_handed(tight, layer):
    shape = dict(B=48, T=8, V=1000, VP=1024, dtype="bf16")
    case = Case(layer, contract.phases_of(contract.load(layer))[-1], shape, "timed", seed=3)
    content = (0, 77)
    tight.draws(case, [case.seed])
    device = tight.device
    (given,) = tight.lay(case, False, "")
    before = device.memory()[0]
    device.forget_peak()
    tight.truths(case, find(discover(), layer, "torch.eager"), [content])
    elements = 48 * 8 * 1024
    held = device.memory()[0] - before
    assert held < elements, "truth is not kept"
    assert device.memory()[1] - before < 4 << 20 < 2 * 8 * elements, "two tensors in fp64 would be more"
    with tight.ipc.opened(given.window, given.size) as memory:
        arena = Arena(case, seed=7)
        arena.load({name: one(value).clone() for name, value in values_in(memory, given.table).items()}, 77)
        arena.reset(seed=9)
        arena.call(getattr(find(discover(), layer, "torch.eager").load(), case.phase))
        arena.hand_back(memory)
        big = one(arena.outputs["logits" if layer == "fused_classifier" else "dlogits"])
        del memory
    left = Handed("", handed_bytes(case), 0, None, 7, 9, [], window=given.window)
    before = device.memory()[0]
    device.forget_peak()
    assert tight.judge(case, content, left).ok
    assert device.memory()[1] - before < handed_bytes(case) + (8 << 20)
    with tight.ipc.opened(given.window, given.size) as memory:
        big[30, 5, 100] += 0.5
        arena.hand_back(memory)
        del memory
    found = tight.judge(case, content, left)
    assert found.check == "inaccurate" and "[30, 5, 100]" in found.evidence


def test_a_process_that_simulates_gets_its_inputs_in_the_hosts_memory(card):
    given = card.given(CASE, "cpu")
    assert given.path and not given.window and not given.note
    assert card.given(CASE).window
