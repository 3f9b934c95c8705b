"""A warp a row, 16 bytes a lane; backward sorts positions by token, so that each row is summed without atomics.

Floor: forward one read (two with its row of wpe, where there is one) and one write of the activations; backward one
read of them and one write of the table, which for GPT-2's vocabulary is the larger part by far. Backward reads the
activations twice, once for each table. A stable radix sort (two passes for GPT-2's vocabulary) costs a few small
kernels; tokens with many positions are summed in pieces by many warps.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import WARP, pack_width

DETERMINISTIC = True  # a row is summed in the order of its positions, in pieces that the sorted list decides

WARPS = 4  # of a block
THREADS = WARPS * WARP
ELEMENTS = 24  # of a row, in a thread's registers
BATCH = 4  # sequences that share a row of wpe, in forward
DIGIT_BITS = 8  # of a token, sorted by in one pass
DIGITS = 1 << DIGIT_BITS  # and threads of a block that sorts
PIECE = 64  # entries that one warp sums
MIN_TILE = 256  # entries of the sort's tiles; larger where there would be more than MAX_TILES of them
MAX_TILES = 128

forward_kernel = Kernel("shared.cu", "embedding_forward", BATCH=BATCH)
positions_kernel = Kernel("shared.cu", "embedding_backward_positions")
count_kernel = Kernel("shared.cu", "embedding_count_digits", DIGITS=DIGITS)
move_kernel = Kernel("shared.cu", "embedding_move_entries", DIGITS=DIGITS)
starts_kernel = Kernel("shared.cu", "embedding_find_starts")
pieces_kernel = Kernel("shared.cu", "embedding_add_pieces", PIECE=PIECE)
rows_kernel = Kernel("shared.cu", "embedding_add_rows", PIECE=PIECE)


def scratch(n, V, C):
    """Bytes of backward's scratch: entries, and entries again, counts, starts, partial sums."""
    tiles, pieces = blocks(n, tile_of(n)), blocks(n, PIECE)
    sizes = (8 * n, 8 * n, 4 * tiles * DIGITS, 4 * (V + 1), 4 * 2 * pieces * C)
    return [blocks(size, 256) * 256 for size in sizes]


def workspace(shape, phase):
    return sum(scratch(shape["B"] * shape["T"], shape["V"], shape["C"])) if phase == "backward" else 0


def tile_of(n):
    """How many entries a warp sorts: a multiple of WARP."""
    return max(MIN_TILE, blocks(n, MAX_TILES * WARP) * WARP)


def spread(C, N):
    """PACKS a lane, and how many warps side by side, for a row of C elements."""
    warps = blocks(C, ELEMENTS // N * N * WARP)
    return blocks(C, warps * WARP * N), warps


def forward(tokens, wte, wpe, *, out):
    B, T, C = out.shape
    N = pack_width(out, wte, wpe, multiple_of=C)
    PACKS, warps = spread(C, N)
    grid = blocks(T, WARPS), warps, blocks(B, BATCH)
    forward_kernel(grid=grid, block=THREADS, N=N, PACKS=PACKS, POSITIONS=wpe is not None)(
        out, tokens, wte, wpe, B, T, C
    )


def backward(dout, tokens, V, accumulate, *, dwte, dwpe, workspace):
    B, T, C = dout.shape
    n = B * T
    sizes = scratch(n, V, C)
    entries, spare, counts, starts, partials = workspace[: sum(sizes)].split(sizes)

    if dwpe is not None:
        N = pack_width(dwpe, dout, multiple_of=T * C)
        positions_kernel(grid=blocks(T * C, THREADS * N), block=THREADS, N=N)(dwpe, dout, B, T * C, accumulate)

    entries = sort_by_token(entries, spare, counts, tokens, n, V)
    starts_kernel(grid=blocks(V + 1, THREADS), block=THREADS)(starts, entries, n, V)

    N = pack_width(dwte, dout, multiple_of=C)
    PACKS, warps = spread(C, N)
    pieces_kernel(grid=(blocks(n, PIECE * WARPS), warps), block=THREADS, N=N, PACKS=PACKS)(
        partials, dout, entries, starts, n, C
    )
    rows_kernel(grid=(blocks(V, WARPS), warps), block=THREADS, N=N, PACKS=PACKS)(
        dwte, dout, partials, entries, starts, V, C, accumulate
    )


def sort_by_token(one, other, counts, tokens, n, V):
    """Sorts (token, position) by token into one of two buffers, which is returned."""
    tile = tile_of(n)
    tiles = blocks(n, tile)
    geometry = dict(grid=blocks(tiles, DIGITS // WARP), block=DIGITS)
    unsorted = None  # the first pass reads the tokens themselves
    for shift in range(0, max(1, (V - 1).bit_length()), DIGIT_BITS):
        count_kernel(**geometry)(counts, tokens, unsorted, n, tile, tiles, shift)
        move_kernel(**geometry)(one, counts, tokens, unsorted, n, tile, tiles, shift)
        unsorted, one, other = one, other, one
    return unsorted
