"""Small made-up Llamas for the tests of files, and their weights."""

from collections.abc import Mapping
from typing import Any

import torch

from reference.models.llama2 import Llama2, init_parameters

MODEL = Llama2("made-up-llama", L=2, NH=4, NKV=2, C=32, H=48, max_t=16, v=300)
UNTIED = Llama2("made-up-untied", L=2, NH=2, NKV=1, C=32, H=64, max_t=16, v=300, tied=False)
OVER_ENDS = Llama2("made-up-42m", L=2, NH=4, NKV=2, C=64, H=96, max_t=16, v=300)  # 64 does not divide H, as in 42m


def weights(model: Llama2, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random everywhere but in the vocabulary's padding, so that no two tensors can be exchanged."""
    generator = torch.Generator().manual_seed(4)
    drawn = {n: p + 0.3 * torch.randn(p.shape, generator=generator) for n, p in init_parameters(model, 0).items()}
    for name in drawn.keys() & {"wte", "head.weight"}:
        drawn[name][model.v :] = 0
    return {n: p.to(dtype) for n, p in drawn.items()}


def equal(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[n], wanted[n].float()) for n in wanted)


def their_config(model: Llama2, **more: Any) -> Any:
    """transformers' configuration of a model."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=model.v,
        hidden_size=model.C,
        intermediate_size=model.H,
        num_hidden_layers=model.L,
        num_attention_heads=model.NH,
        num_key_value_heads=model.NKV,
        max_position_embeddings=model.max_t,
        rms_norm_eps=model.eps,
        rope_parameters=dict(rope_type="default", rope_theta=model.theta),
        tie_word_embeddings=model.tied,
        **more,
    )
