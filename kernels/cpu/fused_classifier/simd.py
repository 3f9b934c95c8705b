"""Maximum and sum in one pass over a row, the gradient in a second one, while the row is still in the L2 cache.

Floor: one read and one write of the logits. A row of GPT-2's vocabulary is 200 KB in fp32, which a core's L2 holds.
Measured on one Zen 5 core: 0.65 of a streamed copy's bandwidth in fp32, 0.35 in bf16: two exp an element set the pace.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("simd.cpp", "fused_classifier_forward")


def forward(targets, dlosses, V, *, logits, losses):
    B, T, VP = logits.shape
    forward_kernel(logits, losses, targets, dlosses, B * T, V, VP)
