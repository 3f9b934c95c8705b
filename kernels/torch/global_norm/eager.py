"""torch.nn.utils.get_total_norm's way, in fp32: _foreach_norm of each tensor, the norm of the norms."""

import torch


def forward(grads, *, norm):
    norms = torch._foreach_norm(grads, 2, dtype=torch.float32)
    torch.linalg.vector_norm(torch.stack(norms), out=norm)
