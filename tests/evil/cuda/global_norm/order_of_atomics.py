"""One atomic addition a warp, in whatever order they come, and says that it is deterministic."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "nondeterministic"
DETERMINISTIC = True
THREADS = 256

zero_kernel = Kernel("order_of_atomics.cu", "zero")
add_kernel = Kernel("order_of_atomics.cu", "add_squares")
root_kernel = Kernel("order_of_atomics.cu", "root")


def forward(grads, *, norm):
    zero_kernel(grid=1, block=1)(norm)
    for grad in grads:
        add_kernel(grid=blocks(grad.numel(), THREADS), block=THREADS)(norm, grad, grad.numel())
    root_kernel(grid=1, block=1)(norm)
