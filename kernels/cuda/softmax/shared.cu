#include "common/math.cuh"
#include "common/online_sum.cuh"
#include "common/row.cuh"

// Row r of S columns sees the first `visible` of them.
__device__ int visible_columns(long long r, int S, bool causal) { return causal ? int(r % S) + 1 : S; }

// `values`, which begin at column i, with what lies at or beyond column `visible` replaced.
template <int N>
__device__ Packed<float, N> masked(Packed<float, N> values, int i, int visible, float replacement) {
#pragma unroll
    for (int k = 0; k < N; k++)
        if (i + k >= visible) values[k] = replacement;
    return values;
}

// ---- rows of C columns that fit into registers: one warp's, of a block of ROWS warps, or a whole block's ------------

// out = exp(x - max) / sum of exp(x - max), 0 where masked. Masked packs are not read.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS * ROWS)
    softmax_forward_row(T* out, const T* x, long long R, bool causal) {
    long long r = blockIdx.x * (long long)ROWS + threadIdx.x / THREADS;
    if (r >= R) return;  // a whole warp, and only where a row is one warp's: no barrier is ahead
    int visible = visible_columns(r, C, causal);
    Packed<T, N> row[PACKS];
    for_packs<N, PACKS, THREADS>(visible, [&](int p, int i) { row[p] = load_once<N>(x + r * C + i); });

    Packed<float, N> values[PACKS];
    float largest = MINUS_INFINITY;
    for_packs<N, PACKS, THREADS>(visible, [&](int p, int i) {
        values[p] = masked(to_floats(row[p]), i, visible, MINUS_INFINITY);
#pragma unroll
        for (int k = 0; k < N; k++) largest = fmaxf(largest, values[p][k]);
    });
    largest = block_max<THREADS>(largest);

    float sum = 0;
    for_packs<N, PACKS, THREADS>(visible, [&](int p, int) {
#pragma unroll
        for (int k = 0; k < N; k++) sum += values[p][k] = exp_approx(values[p][k] - largest);
    });
    float scale = reciprocal_approx(block_sum<THREADS>(sum));

    for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
        Packed<float, N> y = filled<N>(0);
        if (i < visible) {
#pragma unroll
            for (int k = 0; k < N; k++) y[k] = values[p][k] * scale;
        }
        store_floats(out + r * C + i, y);
    });
}

// dx = out * (dout - sum(dout * out)), 0 where masked. Masked packs are not read.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS * ROWS)
    softmax_backward_row(T* dx, const T* dout, const T* out, long long R, bool causal) {
    long long r = blockIdx.x * (long long)ROWS + threadIdx.x / THREADS;
    if (r >= R) return;
    int visible = visible_columns(r, C, causal);
    Packed<T, N> dout_row[PACKS], out_row[PACKS];
    for_packs<N, PACKS, THREADS>(visible, [&](int p, int i) {
        dout_row[p] = load_once<N>(dout + r * C + i);
        out_row[p] = load_once<N>(out + r * C + i);
    });

    float dot = 0;
    for_packs<N, PACKS, THREADS>(visible, [&](int p, int i) {
        Packed<float, N> dy = masked(to_floats(dout_row[p]), i, visible, 0), share = to_floats(out_row[p]);
#pragma unroll
        for (int k = 0; k < N; k++) dot += dy[k] * share[k];
    });
    dot = block_sum<THREADS>(dot);

    for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
        Packed<float, N> y = filled<N>(0);
        if (i < visible) {
            Packed<float, N> dy = to_floats(dout_row[p]), share = to_floats(out_row[p]);
#pragma unroll
            for (int k = 0; k < N; k++) y[k] = share[k] * (dy[k] - dot);
        }
        store_floats(dx + r * C + i, masked(y, i, visible, 0));
    });
}

// ---- longer rows: a block a row, in shared memory as far as that goes -----------------------------------------------

// Columns below `cached` are kept in shared memory between the two passes; the rest is read again, by then from the L2
// cache. Both are multiples of N.
template <typename T, int N, int PACKS, int THREADS>
__global__ void __launch_bounds__(THREADS)
    softmax_forward_long(T* out, const T* x, int S, bool causal, int cached) {
    extern __shared__ uint4 memory[];
    T* cache = reinterpret_cast<T*>(memory);
    long long r = blockIdx.x;
    const T* row = x + r * S;
    int visible = visible_columns(r, S, causal);

    OnlineSum mine;
    for (int start = 0; start < visible; start += PACKS * THREADS * N) {
        Packed<T, N> packs[PACKS];
        for_packs<N, PACKS, THREADS>(visible - start, [&](int p, int i) { packs[p] = load<N>(row + start + i); });

        Packed<float, N> values[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; p++) values[p] = filled<N>(MINUS_INFINITY);
        for_packs<N, PACKS, THREADS>(visible - start, [&](int p, int i) {
            values[p] = masked(to_floats(packs[p]), start + i, visible, MINUS_INFINITY);
            if (start + i < cached) store(cache + start + i, packs[p]);
        });
        mine.add(values);
    }
    float largest = block_max<THREADS>(mine.largest);
    float scale = reciprocal_approx(block_sum<THREADS>(mine.sum * exp_approx(mine.largest - largest)));

    // Each thread reads back what it wrote itself.
    for (int start = 0; start < S; start += PACKS * THREADS * N) {
        for_packs<N, PACKS, THREADS>(S - start, [&](int, int offset) {
            int i = start + offset;
            Packed<float, N> y = filled<N>(0);
            if (i < visible) {
                y = i < cached ? load_floats<N>(cache + i) : load_floats<N>(row + i);
                y = masked(y, i, visible, MINUS_INFINITY);
#pragma unroll
                for (int k = 0; k < N; k++) y[k] = exp_approx(y[k] - largest) * scale;
            }
            store_floats(out + r * S + i, y);
        });
    }
}

// The cache holds `cached` columns of dout, and behind them as many of out.
template <typename T, int N, int PACKS, int THREADS>
__global__ void __launch_bounds__(THREADS)
    softmax_backward_long(T* dx, const T* dout, const T* out, int S, bool causal, int cached) {
    extern __shared__ uint4 memory[];
    T *dout_cache = reinterpret_cast<T*>(memory), *out_cache = dout_cache + cached;
    long long r = blockIdx.x;
    const T *dout_row = dout + r * S, *out_row = out + r * S;
    int visible = visible_columns(r, S, causal);

    float dot = 0;
    for (int start = 0; start < visible; start += PACKS * THREADS * N) {
        Packed<T, N> dout_packs[PACKS], out_packs[PACKS];
        for_packs<N, PACKS, THREADS>(visible - start, [&](int p, int i) {
            dout_packs[p] = load<N>(dout_row + start + i);
            out_packs[p] = load<N>(out_row + start + i);
        });
        for_packs<N, PACKS, THREADS>(visible - start, [&](int p, int offset) {
            int i = start + offset;
            Packed<float, N> dy = masked(to_floats(dout_packs[p]), i, visible, 0), share = to_floats(out_packs[p]);
#pragma unroll
            for (int k = 0; k < N; k++) dot += dy[k] * share[k];
            if (i < cached) {
                store(dout_cache + i, dout_packs[p]);
                store(out_cache + i, out_packs[p]);
            }
        });
    }
    dot = block_sum<THREADS>(dot);

    for (int start = 0; start < S; start += PACKS * THREADS * N) {
        for_packs<N, PACKS, THREADS>(S - start, [&](int, int offset) {
            int i = start + offset;
            Packed<float, N> y = filled<N>(0);
            if (i < visible) {
                Packed<float, N> dy = i < cached ? load_floats<N>(dout_cache + i) : load_floats<N>(dout_row + i);
                Packed<float, N> share = i < cached ? load_floats<N>(out_cache + i) : load_floats<N>(out_row + i);
#pragma unroll
                for (int k = 0; k < N; k++) y[k] = share[k] * (dy[k] - dot);
            }
            store_floats(dx + r * S + i, masked(y, i, visible, 0));
        });
    }
}
