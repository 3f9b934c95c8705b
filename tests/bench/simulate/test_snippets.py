"""Instructions that touch memory or other threads: each snippet of snippets.py against the answer it must give."""

import random
from functools import cache

import pytest
import torch

from bench.simulate import SimulationError, UnknownInstruction
from bench.simulate.translate import in_order
from tests.bench.simulate.snippets import SNIPPETS, THREADS, launch, snippet_ptx


@cache
def module() -> str:
    """All snippets in one module: the C++ compiler's time dominates."""
    return snippet_ptx({name: s.body for name, s in SNIPPETS.items()})


def given_words() -> list[int]:
    rng = random.Random(5)
    return [rng.getrandbits(64) for _ in range(THREADS)]


def signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippet(name):
    snippet, words = SNIPPETS[name], given_words()
    given = torch.tensor([signed(w) for w in words], dtype=torch.int64)
    out = torch.zeros(2 * THREADS, dtype=torch.int64)
    if snippet.error:
        with pytest.raises(SimulationError) as caught:
            launch(module(), name, THREADS, out, given, seed=0)
        assert caught.value.reports[0].kind == snippet.error
        return
    launch(module(), name, THREADS, out, given, seed=0)
    answers = [v & (2**64 - 1) for v in out.tolist()]
    for thread in range(THREADS):
        wanted = snippet.answer(thread, words)
        got = tuple(answers[thread + i * THREADS] for i in range(len(wanted)))
        assert got == wanted, f"thread {thread}"


def body_error(body: str) -> str:
    with pytest.raises(UnknownInstruction) as caught:
        launch(snippet_ptx({"k": body}), "k", 1, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    return str(caught.value)


def test_an_unknown_instruction_is_named_with_its_line():
    message = body_error('.loc 1 17 3\n frobnicate.f32 %f1, %f2;\n.file 1 "/home/someone/kernel.cu"\n')
    assert "frobnicate.f32 %f1, %f2" in message and "kernel.cu:17" in message and "someone" not in message


def test_an_unknown_modifier_is_named_with_what_there_is():
    message = body_error("add.rn.strange.f32 %f1, %f2, %f3;")
    assert "add.rn.strange.f32" in message and "add{.rn}.FTZ.SAT.f32" in message


@pytest.mark.parametrize(
    ("body", "section"),
    [
        ("tcgen05.fence::before_thread_sync;", "9.7.16"),
        ("mapa.shared::cta.u32 %r1, %r2, %r3;", "9.7.9"),
        ("add.cc.f32 %f1, %f2, %f3;", "9.7.2"),
        ("tex.1d.v4.s32.s32 {%r1, %r2, %r3, %r4}, [%rd1, {%r5}];", "9.7.10"),  # tex1Dfetch
        ("suld.b.1d.b32.trap %r1, [%rd1, {%r2}];", "9.7.11"),
        ("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u16 [%r1], %r2, [%r3];", "9.7.9.25"),
    ],
)
def test_an_unknown_instruction_comes_with_the_manuals_section(body, section):
    assert f"(PTX ISA, {section} " in body_error(body)


def test_a_function_that_is_only_announced_is_refused():
    message = body_error("{ .param .b64 p0; .param .b32 r0; call.uni (r0), cudaLaunchDevice, (p0, p0); }")
    assert "cudaLaunchDevice, which this file only announces" in message


def test_qualifiers_may_stand_in_any_order():
    """ptxas takes them so, and Triton writes them so."""
    assert in_order("atom.global.acq_rel.gpu.cas.b32") == "atom.acq_rel.gpu.global.cas.b32"
    assert in_order("atom.global.gpu.acq_rel.exch.b32") == "atom.acq_rel.gpu.global.exch.b32"
    assert in_order("ld.global.volatile.v2.b32") == "ld.volatile.global.v2.b32"
    assert in_order("st.shared::cta.b32") == "st.shared::cta.b32"
    assert in_order("atom.add.release.gpu.u32") == "atom.release.gpu.add.u32"  # cooperative_groups/details/sync.h
    assert in_order("red.or.release.cta.b32") == "red.release.cta.or.b32"
    assert in_order("red.async.relaxed.cluster.add.u32") == "red.async.relaxed.cluster.add.u32"
    assert (
        in_order("ldmatrix.sync.aligned.x4.trans.m8n8.shared.b16") == "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
    )
    assert in_order("stmatrix.sync.aligned.x2.m8n8.shared::cta.b16") == "stmatrix.sync.aligned.m8n8.x2.shared::cta.b16"
    assert in_order("ldmatrix.sync.aligned.x4.m16n16.shared.b8") == "ldmatrix.sync.aligned.x4.m16n16.shared.b8"
    assert in_order("add.sat.s32") == "add.sat.s32"
