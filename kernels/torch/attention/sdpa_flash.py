"""SDPA's flash backend, pinned: tiled online softmax in ATen. Its outputs are copied once."""

import torch

KERNELS = ("_scaled_dot_product_flash_attention*",)


def _heads(x, count):
    """(B, T, n, HS) to (B, count, T, HS); the backend knows no groups, so key/value heads are repeated for theirs."""
    x = x.transpose(1, 2)
    return x if x.shape[1] == count else x.repeat_interleave(count // x.shape[1], dim=1)


def forward(q, k, v, causal, *, out, lse):
    heads = [_heads(x, q.shape[2]) for x in (q, k, v)]
    if q.device.type == "cpu":
        result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads, 0.0, causal)
    else:
        result = torch.ops.aten._scaled_dot_product_flash_attention(*heads, 0.0, causal)
    out.copy_(result[0].transpose(1, 2))
    lse.copy_(result[1])


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv):
    NH, T = q.shape[2], q.shape[1]
    heads = [_heads(x, NH) for x in (q, k, v)]
    do, o = dout.transpose(1, 2), out.transpose(1, 2)
    if q.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = flash(do, *heads, o, lse, 0.0, causal)
    else:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_backward
        # Dropout is off: the random state is not read.
        unused = torch.empty(0, dtype=torch.uint64, device=q.device)
        grads = flash(do, *heads, o, lse, None, None, T, T, 0.0, causal, unused, unused)
    dq.copy_(grads[0].transpose(1, 2))
    for into, grad in zip((dk, dv), grads[1:], strict=True):
        B, _, NKV, HS = into.shape
        if NKV != NH:
            grad = grad.float().view(B, NKV, NH // NKV, T, HS).sum(2)
        into.copy_(grad.transpose(1, 2))
