"""Contestants of `bench.generate`, in this process: all write the same text, and the judge tells right from wrong."""

import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.checkpoints import llama2c
from bench.core.variants import discover
from bench.generation import rooms
from bench.generation.llama_cpp import LlamaCppRoom
from bench.generation.plan import Job, calls, need
from bench.generation.rooms import LIMIT, JudgeRoom, OurRoom, PlainRoom, TransformersRoom
from bench.generation.source import Source
from bench.models.inference import Sizes
from reference.models.gpt2 import GPT2
from reference.models.llama2 import Llama2
from reference.models.plain import init_parameters, network
from tests import truth_variants
from tests.stand_in import llama_cpp

GPT = GPT2("small", L=2, NH=3, C=48, max_t=20, v=130)
LLAMA = Llama2("grouped", L=2, NH=4, NKV=2, C=32, H=48, max_t=20, v=128, eps=1e-3)
PROMPT = (5, 1, 77, 3, 3)
STEPS = 6


def job(model, dtype: str = "fp32", group: int = 0, **other) -> Job:
    """Two sequences of one prompt."""
    sizes = Sizes(B=2, T=len(PROMPT), S=len(PROMPT) + STEPS - 1, dtype=dtype, group=group, steps=STEPS)
    return Job(Source(model, None, 3), (PROMPT, PROMPT), replace(sizes, **other), "cpu", 1, 0)


@pytest.fixture(autouse=True)
def telling(monkeypatch):
    """Weights ten times as wide as training starts with: texts of several tokens, and logits that tell them apart."""

    def wide(model, seed):
        return {n: p * 10 if p.dim() == 2 else p for n, p in init_parameters(model, seed).items()}

    monkeypatch.setattr("bench.generation.source.init_parameters", wide)


def ours(of: Job, name: str = "torch.eager", folder=None, **other: str) -> OurRoom:
    room = OurRoom(of)
    found = {(v.layer, v.name): v for v in discover((folder,) if folder else ())}
    room.build({id: found[id.layer, other.get(id.layer, name)] for id in calls(of)})
    return room


def judged(of: Job, room: OurRoom) -> rooms.Verdict:
    drawn, logits = room.logits(STEPS)
    return JudgeRoom(of).judge(drawn, logits)


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=lambda m: m.name)
def test_all_write_the_same_text(model):
    """Ours, plain PyTorch with a cache, transformers on the exported weights."""
    of = job(model)
    done = ours(of).run()
    assert len(done["step_s"]) == STEPS - 1 and done["prefill_s"] <= done["first_s"]
    assert len(set(done["tokens"][0])) > 2, "a text of one token proves little"
    for other in (PlainRoom(of, "eager"), TransformersRoom(of)):
        assert other.ready()
        assert other.run()["tokens"] == done["tokens"], other.ready()


def test_a_race_ends_with_its_time():
    """Calls that are not reached have no times, and who serves them is the quickest at the nearest call."""
    room = OurRoom(job(LLAMA))
    pool = {id: [v for v in discover() if v.layer == id.layer and v.name in ("torch.eager", "cpu.naive")]
            for id in room.made.shapes if id.layer in ("rmsnorm", "swiglu")}  # fmt: skip
    assert all(len(some) == 2 for some in pool.values())
    assert not room.race(pool, stop=0.0).ms and room.race(pool, stop=60.0).ms.keys() == pool.keys()


def test_what_is_told_as_it_comes_is_what_is_written():
    """Up to where all texts are over."""
    room = ours(job(LLAMA))
    told: list[Any] = []
    room.tell = told.append  # type: ignore[method-assign]
    drawn = room.run()["tokens"]
    assert room.stream(None) == drawn and [list(step) for step in zip(*drawn, strict=True)] == told
    told.clear()
    cut = drawn[0].index(drawn[0][3]) + 1
    assert room.stream(drawn[0][3]) == [ids[:cut] for ids in drawn] and len(told) == cut
    assert room.run()["tokens"] == drawn


@pytest.mark.parametrize(("dtype", "group"), [("fp32", 0), ("bf16", 0), ("fp32", 32)])
def test_llama_cpp_is_given_the_same_weights_and_prompts(monkeypatch, dtype, group):
    """By its own way of calls, on a stand-in: two sequences, each token at its place, ours in a file in between."""
    monkeypatch.setitem(sys.modules, "llama_cpp", llama_cpp)
    of = job(LLAMA, dtype, group)
    of = replace(of, prompts=(PROMPT, PROMPT[::-1]))
    room = LlamaCppRoom(of)
    assert room.ready().endswith("weights in " + ("q8_0" if group else dtype))
    done = room.run()
    assert len(done["step_s"]) == STEPS - 1
    assert done == room.run() | {name: done[name] for name in ("prefill_s", "first_s", "step_s")}, "from the beginning"
    assert done["tokens"][0] != done["tokens"][1]
    for text, drawn in zip(of.prompts, done["tokens"], strict=True):
        net = network(LLAMA).double()
        net.load(room.rounded())
        whole = torch.tensor([[*text, *drawn[:-1]]])
        assert net(whole)[0, -STEPS:, : LLAMA.v].argmax(-1).tolist() == drawn
    if (dtype, group) == ("fp32", 0):
        assert ours(of).run()["tokens"] == done["tokens"]


@pytest.mark.slow
def test_the_real_llama_cpp_writes_the_same_text():
    pytest.importorskip("llama_cpp")
    of = job(replace(LLAMA, v=300))
    room = LlamaCppRoom(of)
    room.ready()
    assert room.run()["tokens"] == ours(of).run()["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("model", [GPT, LLAMA], ids=lambda m: m.name)
def test_compiled_it_is_the_same_text(model):
    of = job(model)
    room = PlainRoom(of, "compile")
    assert "torch.compile" in room.ready()
    assert room.run()["tokens"] == ours(of).run()["tokens"]


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=lambda m: m.name)
@pytest.mark.parametrize(("dtype", "group"), [("fp32", 0), ("bf16", 0), ("fp32", 16)])
def test_pytorchs_own_variants_are_one_yard_off(model, dtype, group):
    """Ours are the same variants here, so the error is the yard: it is that of each step, and not of the last alone."""
    of = job(model, dtype, group)
    verdict = judged(of, ours(of))
    assert verdict.yard / 2 <= verdict.error <= 1.001 * verdict.yard
    assert verdict.of == 2 * STEPS
    assert verdict.same == verdict.of or dtype == "bf16" or group


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=lambda m: m.name)
@pytest.mark.parametrize(("group", "factor"), [(0, 0.999), (16, 0.5)])
def test_what_is_wrong_in_decode_alone_is_told(tmp_path, model, group, factor):
    """The plain network looks at the whole text. In int8 the yard is coarse: the rounding of activations is in it."""
    truth_variants.write(tmp_path, "forgets", ("decode_attention",), "_forward = forward\n")
    file = tmp_path / "torch" / "decode_attention" / "forgets.py"
    body = "\n\ndef forward(qkv, lengths, NH, *, out, k_cache, v_cache):\n"
    body += "    _forward(qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache)\n    out.mul_(FACTOR)\n"
    file.write_text(file.read_text() + body.replace("FACTOR", str(factor)))
    of = job(model, group=group)
    verdict = judged(of, ours(of, folder=tmp_path, decode_attention="torch.forgets"))
    assert verdict.error > LIMIT * verdict.yard
    assert judged(of, ours(of, folder=tmp_path, decode_attention="torch.eager")).error <= LIMIT * verdict.yard


def test_a_text_that_is_not_a_number_is_wrong():
    of = job(LLAMA)
    drawn, logits = ours(of).logits(STEPS)
    logits[-1][0][0] = math.nan
    verdict = JudgeRoom(of).judge(drawn, logits)
    assert not verdict.error <= LIMIT * verdict.yard


def test_a_quantised_file_is_kept_as_it_is_and_any_other_group_is_made_of_it(tmp_path):
    """The truth is the network of the weights that ours multiplies with, whatever the file's group."""
    path, llama = tmp_path / "model.bin", replace(LLAMA, eps=1e-5)
    weights = {n: p * 10 if p.dim() == 2 else p for n, p in init_parameters(llama, 3).items()}
    llama2c.write_model(path, llama, weights, version=2, group=16)
    model, _, quantised, group = llama2c.read_quantised(path)
    assert group == 16
    of = job(model, group=16)
    of = replace(of, source=Source(model, path, 0, group))
    room = ours(of)
    for name, (values, scales) in room.made.quantised.items():
        assert torch.equal(values, quantised[name][0]) and torch.equal(scales, quantised[name][1]), name
    for sizes in (of.sizes, replace(of.sizes, group=8), replace(of.sizes, group=0)):
        other = replace(of, sizes=sizes)
        verdict = judged(other, ours(other))
        assert verdict.error <= 1.001 * verdict.yard
        if not sizes.group:
            assert verdict.error < 1e-4  # of the very numbers that the file stands for


def test_bytes_are_those_of_the_run():
    of = job(LLAMA)
    room = OurRoom(of)
    built = room.build(
        {id: v for id in calls(of) for v in discover() if (v.layer, v.name) == (id.layer, "torch.eager")}
    )
    work = need(of)
    assert built.weight_bytes == 4 * LLAMA.parameters == work.read_weights
    keys = len(PROMPT) + STEPS // 2
    assert work.read_cache == 2 * 2 * keys * 2 * 4 * LLAMA.NKV * LLAMA.head_size
    assert built.bytes > built.weight_bytes + built.cache_bytes


def test_who_remembers_a_text_gains_nothing(tmp_path):
    """Kept by what goes in, answers are right; and each round's text is new: no product of it was worked out before."""
    truth_variants.write(tmp_path, "remembers", ("gemv",))
    file = tmp_path / "torch" / "gemv" / "remembers.py"
    file.write_text(
        '"""Keeps answers by what it is given: a benchmark writes one text again and again."""\n\n'
        "from kernels.torch.gemv import eager\n\nkept = {}\n\n\ndef forward(x, weight, *, out):\n"
        "    key = weight.data_ptr(), x.numpy().tobytes()\n    if key not in kept:\n"
        "        eager.forward(x, weight, out=out)\n        kept[key] = out.clone()\n    out.copy_(kept[key])\n"
    )
    of = job(LLAMA)
    room = ours(of, folder=tmp_path, gemv="torch.remembers")
    kept = next(v for v in discover((tmp_path,)) if v.name == "torch.remembers").load().kept
    new = []
    for turn in (0, 0, 6, 7):
        before = len(kept)
        done = room.run(turn)
        new.append(len(kept) - before)
    assert new[1] == 0 and new[2] == new[3] > STEPS, new
    judge = JudgeRoom(of)
    assert not judge.judge_text(7, done["tokens"], [done["last"]], 1e-4).wrong
    assert judge.judge_text(8, done["tokens"], [done["last"]], 1e-4).wrong, "of other prompts"
    assert [len(p) for p in of.text(7)[0]] == [len(p) for p in of.prompts] and of.text(7) == of.text(7) != of.text(8)
