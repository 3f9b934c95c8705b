"""One thread an element; backward adds each gradient to its token's row of an fp32 table with an atomic.

Floor: forward one read (two with its row of wpe, where there is one) and one write of the activations; backward one
read of them and one write of the table, which for GPT-2's vocabulary is the larger part by far. The fp32 table beside
it is written, added to and read again, frequent tokens queue up at their row, and the order of additions is another in
every run.
"""

from kernels.cuda import Kernel, blocks

THREADS = 256

forward_kernel = Kernel("naive.cu", "embedding_forward")
begin_kernel = Kernel("naive.cu", "embedding_backward_begin")
add_kernel = Kernel("naive.cu", "embedding_backward_add")
end_kernel = Kernel("naive.cu", "embedding_backward_end")
positions_kernel = Kernel("naive.cu", "embedding_backward_positions")


def workspace(shape, phase):
    """Backward: the table of sums in fp32."""
    return shape["V"] * shape["C"] * 4 if phase == "backward" else 0


def forward(tokens, wte, wpe, *, out):
    T, C = out.shape[1:]
    n = out.numel()
    forward_kernel(grid=blocks(n, THREADS), block=THREADS)(out, tokens, wte, wpe, n, T, C)


def backward(dout, tokens, V, accumulate, *, dwte, dwpe, workspace):
    B, T, C = dout.shape
    table, n = V * C, dout.numel()
    begin_kernel(grid=blocks(table, THREADS), block=THREADS)(workspace, dwte, table, accumulate)
    add_kernel(grid=blocks(n, THREADS), block=THREADS)(workspace, dout, tokens, n, C)
    end_kernel(grid=blocks(table, THREADS), block=THREADS)(dwte, workspace, table)
    if dwpe is not None:
        positions_kernel(grid=blocks(T * C, THREADS), block=THREADS)(dwpe, dout, B, T * C, accumulate)
