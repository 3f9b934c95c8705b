#include "common/packed.cuh"
#include "common/reduce.cuh"
#include "common/row.cuh"

// Warps here take a piece of a row: PACKS packs of N a lane, the piece beginning at this column.
template <int N, int PACKS>
__device__ int first_column() {
    return blockIdx.y * PACKS * WARP * N;
}

// ---- forward --------------------------------------------------------------------------------------------------------

// out[b, t] = wte[tokens[b, t]], and + wpe[t] where there are POSITIONS. One warp a position t and BATCH sequences:
// the row of wpe is read once for all of them, and their rows of wte, which lie anywhere, are on their way at once.
template <typename T, int N, int PACKS, int BATCH, bool POSITIONS>
__global__ void embedding_forward(T* out, const long long* tokens, const T* wte, const T* wpe, int B, int length,
                                  int C) {
    int warps = blockDim.x / WARP, t = blockIdx.x * warps + warp_id(), column = first_column<N, PACKS>();
    if (t >= length) return;
    int first = blockIdx.z * BATCH, some = min(BATCH, B - first);
    long long token[BATCH];
#pragma unroll
    for (int k = 0; k < BATCH; k++) token[k] = k < some ? tokens[(long long)(first + k) * length + t] : 0;
    Packed<T, N> position[PACKS], values[BATCH][PACKS];
    for_packs<N, PACKS, WARP>(C - column, [&](int p, int i) {
        if (POSITIONS) position[p] = load<N>(wpe + (long long)t * C + column + i);
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (k < some) values[k][p] = load<N>(wte + token[k] * C + column + i);
    });
    for_packs<N, PACKS, WARP>(C - column, [&](int p, int i) {
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (k >= some) break;
            Packed<float, N> sum = to_floats(values[k][p]);
            if constexpr (POSITIONS) {
                Packed<float, N> added = to_floats(position[p]);
#pragma unroll
                for (int j = 0; j < N; j++) sum[j] += added[j];
            }
            store_floats(out + ((long long)(first + k) * length + t) * C + column + i, sum);
        }
    });
}

// ---- backward: wpe --------------------------------------------------------------------------------------------------

// dwpe[t] = (or +=) sum over b of dout[b, t]; a sequence has n = T C elements, and a thread N of them
template <typename T, int N>
__global__ void embedding_backward_positions(T* dwpe, const T* dout, int B, long long n, bool accumulate) {
    long long i = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * N;
    if (i >= n) return;
    Packed<float, N> sum = accumulate ? load_floats<N>(dwpe + i) : filled<N>(0);
#pragma unroll 8
    for (int b = 0; b < B; b++) {
        Packed<float, N> gradient = load_floats<N>(dout + b * n + i);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += gradient[k];
    }
    store_floats(dwpe + i, sum);
}

// ---- backward: sorting positions by token ---------------------------------------------------------------------------

// A radix sort, one digit of the token after the other, lowest first, each pass keeping the order of equal digits: so
// that the positions of one token end up in their own order, whatever the machine does. The n entries are cut into
// tiles of `tile`, one warp's each. Two kernels a pass: one counts each tile's digits, the next moves the entries. A
// block has a thread for each of the DIGITS values of a digit, and so DIGITS / WARP tiles.

constexpr int AHEAD = 8;  // entries of a lane that are read before the first is used

struct alignas(8) Entry {
    int token, position;
};

__device__ unsigned lanes_below() { return (1u << lane_id()) - 1; }

// f(entry, valid, digit, same) for each entry of this warp's tile, 32 at a time and in order. `same`: the lanes whose
// entry has the same digit; lanes beyond the end have the digit -1. `entries` is null in the first pass: then entry i
// is position i.
template <int DIGITS, typename F>
__device__ void for_tile(const long long* tokens, const Entry* entries, int n, int tile, int shift, F f) {
    int first = (blockIdx.x * (DIGITS / WARP) + warp_id()) * tile, last = min(n, first + tile);
    for (int start = first; start < last; start += AHEAD * WARP) {
        Entry ahead[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            int i = start + k * WARP + lane_id();
            if (i < last) ahead[k] = entries ? entries[i] : Entry{int(tokens[i]), i};
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            bool valid = start + k * WARP + lane_id() < last;
            int digit = valid ? ahead[k].token >> shift & (DIGITS - 1) : -1;
            f(ahead[k], valid, digit, __match_any_sync(ALL_LANES, digit));
        }
    }
}

// counts[tile][digit]: how many entries of the tile have the digit
template <int DIGITS>
__global__ void __launch_bounds__(DIGITS)
    embedding_count_digits(int* counts, const long long* tokens, const Entry* entries, int n, int tile, int tiles,
                           int shift) {
    constexpr int WARPS = DIGITS / WARP;
    __shared__ int all[WARPS][DIGITS];
    int* mine = all[warp_id()];
    for (int digit = lane_id(); digit < DIGITS; digit += WARP) mine[digit] = 0;
    __syncwarp();
    for_tile<DIGITS>(tokens, entries, n, tile, shift, [&](Entry, bool valid, int digit, unsigned same) {
        if (valid && (same & lanes_below()) == 0) mine[digit] += __popc(same);
        __syncwarp();
    });
    int t = blockIdx.x * WARPS + warp_id();
    if (t >= tiles) return;
    for (int digit = lane_id(); digit < DIGITS; digit += WARP) counts[t * DIGITS + digit] = mine[digit];
}

// The sum of `value` over the threads before this one, in a block of WARPS warps.
template <int WARPS>
__device__ int sum_of_threads_before(int value) {
    __shared__ int warp_sums[WARPS];
    int sum = value;  // of this lane and those before
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        int other = __shfl_up_sync(ALL_LANES, sum, distance);
        if (lane_id() >= distance) sum += other;
    }
    if (lane_id() == WARP - 1) warp_sums[warp_id()] = sum;
    __syncthreads();
    int before = sum - value;
    for (int w = 0; w < warp_id(); w++) before += warp_sums[w];
    return before;
}

// sorted = entries, in the order of this pass's digit
template <int DIGITS>
__global__ void __launch_bounds__(DIGITS)
    embedding_move_entries(Entry* sorted, const int* counts, const long long* tokens, const Entry* entries, int n,
                           int tile, int tiles, int shift) {
    constexpr int WARPS = DIGITS / WARP;
    __shared__ int next[WARPS][DIGITS];  // where a tile's next entry with the digit goes
    int first_tile = blockIdx.x * WARPS, own_tiles = min(WARPS, tiles - first_tile);
    int digit_of_thread = threadIdx.x, count = 0;
#pragma unroll 16
    for (int t = 0; t < tiles; t++) {
        int w = t - first_tile;
        if (w >= 0 && w < own_tiles) next[w][digit_of_thread] = count;
        count += counts[t * DIGITS + digit_of_thread];
    }
    int smaller = sum_of_threads_before<WARPS>(count);
    for (int w = 0; w < own_tiles; w++) next[w][digit_of_thread] += smaller;
    __syncthreads();

    int* mine = next[warp_id()];
    for_tile<DIGITS>(tokens, entries, n, tile, shift, [&](Entry entry, bool valid, int digit, unsigned same) {
        if (valid) sorted[mine[digit] + __popc(same & lanes_below())] = entry;
        __syncwarp();
        if (valid && (same & lanes_below()) == 0) mine[digit] += __popc(same);
        __syncwarp();
    });
}

// starts[v]: how many entries have a token below v, for v = 0 … V; so those of v are starts[v] … starts[v + 1] - 1
__global__ void embedding_find_starts(int* starts, const Entry* sorted, int n, int V) {
    int v = blockIdx.x * blockDim.x + threadIdx.x;
    if (v > V) return;
    int low = 0, high = n;
    while (low < high) {
        int middle = (low + high) / 2;
        if (sorted[middle].token < v) low = middle + 1;
        else high = middle;
    }
    starts[v] = low;
}

// ---- backward: wte --------------------------------------------------------------------------------------------------

// A token is rare where it has up to PIECE entries: then one warp adds them. The entries of the others are added in
// pieces of PIECE, by position in the sorted list and by one warp each, and the pieces afterwards; so no warp has a
// long way to go, however uneven the tokens are.

// sums += dout[position] for `count` entries, in their order
template <typename T, int N, int PACKS>
__device__ void add_entries(Packed<float, N> (&sums)[PACKS], const T* dout, const Entry* entries, int count, int column,
                            int C) {
    for (int start = 0; start < count; start += WARP) {
        int some = min(WARP, count - start);
        int own = lane_id() < some ? entries[start + lane_id()].position : 0;
#pragma unroll 4
        for (int k = 0; k < some; k++) {
            const T* row = dout + (long long)__shfl_sync(ALL_LANES, own, k) * C + column;
            for_packs<N, PACKS, WARP>(C - column, [&](int p, int i) {
                Packed<float, N> gradient = load_floats<N>(row + i);
#pragma unroll
                for (int j = 0; j < N; j++) sums[p][j] += gradient[j];
            });
        }
    }
}

// A piece meets at most two frequent tokens: that of its first entry, and one that begins in it and goes on beyond it.
// partials[2 piece], partials[2 piece + 1]: the sums, C floats each, of these two; unwritten where there is none.
template <typename T, int N, int PACKS, int PIECE>
__global__ void embedding_add_pieces(float* partials, const T* dout, const Entry* sorted, const int* starts, int n,
                                     int C) {
    int piece = blockIdx.x * (blockDim.x / WARP) + warp_id(), column = first_column<N, PACKS>();
    int begin = piece * PIECE;
    if (begin >= n) return;
    int end = min(n, begin + PIECE);
    for (int slot = 0; slot < 2; slot++) {
        int token = sorted[slot == 0 ? begin : end - 1].token;
        int first = starts[token], last = starts[token + 1];
        if (last - first <= PIECE || (slot == 1 && first <= begin)) continue;
        int from = max(begin, first), to = min(end, last);
        Packed<float, N> sums[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; p++) sums[p] = filled<N>(0);
        add_entries(sums, dout, sorted + from, to - from, column, C);
        float* partial = partials + (2LL * piece + slot) * C + column;
        for_packs<N, PACKS, WARP>(C - column, [&](int p, int i) { store_floats(partial + i, sums[p]); });
    }
}

// dwte[v] = (or +=) the sum of its entries' rows of dout; 0 (or untouched) where it has none
template <typename T, int N, int PACKS, int PIECE>
__global__ void embedding_add_rows(T* dwte, const T* dout, const float* partials, const Entry* sorted,
                                   const int* starts, int V, int C, bool accumulate) {
    int v = blockIdx.x * (blockDim.x / WARP) + warp_id(), column = first_column<N, PACKS>();
    if (v >= V) return;
    int first = starts[v], last = starts[v + 1], count = last - first;
    if (count == 0 && accumulate) return;
    T* row = dwte + (long long)v * C + column;
    Packed<float, N> sums[PACKS];
    for_packs<N, PACKS, WARP>(C - column, [&](int p, int i) {
        sums[p] = accumulate ? load_floats<N>(row + i) : filled<N>(0);
    });
    if (count <= PIECE) {
        add_entries(sums, dout, sorted + first, count, column, C);
    } else {
#pragma unroll 4
        for (int piece = first / PIECE; piece <= (last - 1) / PIECE; piece++) {
            int slot = first <= piece * PIECE ? 0 : 1;
            const float* partial = partials + (2LL * piece + slot) * C + column;
            for_packs<N, PACKS, WARP>(C - column, [&](int p, int i) {
                Packed<float, N> sum = load<N>(partial + i);
#pragma unroll
                for (int j = 0; j < N; j++) sums[p][j] += sum[j];
            });
        }
    }
    for_packs<N, PACKS, WARP>(C - column, [&](int p, int i) { store_floats(row + i, sums[p]); });
}
