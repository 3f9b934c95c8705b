"""A decode attention of one token is launched for each token and each head of the cache, and is right so."""

import runpy
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench import simulate
from bench.adopt.reader import adopt
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, draw, one, truth_of
from kernels import cuda
from reference import contract

GROUPED = """
typedef struct { int n_heads; int seq_len; } Config;
__global__ void attend(int pos, int seq_len, float* sq, float* satt, float* sxb, float* key_cache, float* value_cache,
                       int kv_dim, int kv_mul, int head_size, int loff) {
    const int h = blockIdx.x, at = loff + h / kv_mul * head_size;
    if (threadIdx.x) return;
    float top = -INFINITY, sum = 0;
    for (int t = 0; t <= pos; t++) {
        float score = 0;
        for (int i = 0; i < head_size; i++) score += sq[h * head_size + i] * key_cache[at + t * kv_dim + i];
        satt[h * seq_len + t] = score / sqrtf(head_size);
        top = fmaxf(top, satt[h * seq_len + t]);
    }
    for (int t = 0; t <= pos; t++) sum += expf(satt[h * seq_len + t] - top);
    for (int i = 0; i < head_size; i++) {
        float out = 0;
        for (int t = 0; t <= pos; t++)
            out += expf(satt[h * seq_len + t] - top) / sum * value_cache[at + t * kv_dim + i];
        sxb[h * head_size + i] = out;
    }
}
void run(int pos, Config* p, float* q, float* att, float* xb, float* k, float* v, int kv_dim, int kv_mul, int head_size,
         int loff) {
    attend<<<p->n_heads, 32>>>(pos, p->seq_len, q, att, xb, k, v, kv_dim, kv_mul, head_size, loff);
}
"""
ALONE = """
__global__ void attend(float* output, const float* q, const float* key_cache, const float* value_cache, int num_heads,
                       int head_size, int loff, int seq_len, int dim) {
    const int h = blockIdx.x, i = threadIdx.x;
    float sum = 0, out = 0;
    for (int t = 0; t < seq_len && i < head_size; t++) {
        float score = 0;
        for (int c = 0; c < head_size; c++)
            score += q[h * head_size + c] * key_cache[loff + t * dim + h * head_size + c];
        const float p = expf(score / sqrtf(head_size));
        sum += p;
        out += p * value_cache[loff + t * dim + h * head_size + i];
    }
    if (i < head_size) output[h * head_size + i] = out / sum;
}
void run(float* output, float* q, float* key_cache, float* value_cache, int num_heads, int head_size, int loff,
         int seq_len) {
    int dim = head_size * num_heads;
    attend<<<num_heads, 64>>>(output, q, key_cache, value_cache, num_heads, head_size, loff, seq_len, dim);
}
"""


def taken(root: Path, source: str) -> tuple[Path, list[str]]:
    (root / "attend.cu").write_text(source)
    written, decide, _ = adopt(root / "attend.cu", "decode_attention", into=root / "into")
    return written[0], decide


@pytest.mark.skipif(bool(simulate.unavailable("cuda", ())), reason="the simulator is not there")
@pytest.mark.parametrize(
    ("source", "changed", "right"),
    [
        (GROUPED, ("", ""), True),
        (ALONE, ("", ""), True),
        (GROUPED, ("t <= pos", "t < pos"), False),  # without its own key
        (ALONE, ("t * dim", "t * (dim + 1)"), False),
    ],
)
def test_it_is_right_of_several_sequences_tokens_and_shared_heads(tmp_path, source, changed, right):
    file, decide = taken(tmp_path, source.replace(*changed) if changed[0] else source)
    assert decide == []
    module = contract.load("decode_attention")
    case = Case("decode_attention", "forward", {**module.sizes(2, 2, 4, 2, 16, 9, spread=True), "dtype": "fp32"}, "", 1)
    values = draw(case)
    simulate.install("cuda")
    try:
        variant = ModuleType("attend")
        vars(variant).update(runpy.run_path(str(file)))
        arena = Arena(case, workspace_bytes=workspace_of(variant, case))
        arena.load(values)
        arena.reset()
        arena.call(vars(variant)["forward"])
        truth = truth_of(case, values)
        assert torch.allclose(one(arena.outputs["out"]).double(), one(truth["out"]).double(), atol=1e-5) == right
        assert torch.equal(one(arena.outputs["k_cache"]).double(), one(truth["k_cache"]).double())
    except simulate.SimulationError:
        assert not right
    finally:
        cuda.simulate_with(None)


def test_who_is_told_no_position_is_left_to_a_person(tmp_path):
    _, decide = taken(
        tmp_path, GROUPED.replace("int pos, int seq_len", "int* pos, int lanes").replace("seq_len", "lanes")
    )
    assert any("qkv" in line for line in decide)
