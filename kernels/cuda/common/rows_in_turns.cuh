// Backward of rows that are normalised: a block stays and takes one row, or group of rows, after another, and keeps sums
// over them. What layernorm/shared.cu and rmsnorm/shared.cu have in common.
#pragma once

#include "common/async_copy.cuh"
#include "common/row.cuh"

// to[i] = the sum of `values` over a block's ROWS groups of THREADS threads, for each element i of a row. `all` is shared
// memory for ROWS times as many floats as the groups have, where ROWS > 1; it may be written at once.
template <int C, int N, int PACKS, int THREADS, int ROWS>
__device__ void add_groups(float* to, const Packed<float, N> (&values)[PACKS], float* all) {
    if constexpr (ROWS == 1) {
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) { store_floats(to + i, values[p]); });
    } else {
        constexpr int ROW = PACKS * THREADS * N;
        float* mine = all + threadIdx.x / THREADS * ROW;
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) { store<N>(mine + i, values[p]); });
        __syncthreads();
        for (int i = threadIdx.x; i < C; i += THREADS * ROWS) {
            float sum = 0;
#pragma unroll
            for (int g = 0; g < ROWS; g++) sum += all[g * ROW + i];
            to[i] = sum;
        }
        __syncthreads();  // the next call writes `all` again
    }
}

// What a thread needs of a row: its packs of x, dout and dresidual (which may be null), and the row's rstd and, where it
// was CENTRED, mean.
//
//     rows.ask(first);
//     for (…) {
//         rows.begin(r, next);   // from here on r's are there, and next's on their way
//         rows.x(p), rows.dout(p), rows.dresidual(p), rows.mean, rows.rstd
//     }
//
// AHEAD: the next row's packs are copied to shared memory while this row's are used, without a register for them: two
// rows of a thread's are in flight until the first is waited for, and one while that is worked on. A thread reads what
// it copied itself, so there is no barrier. Otherwise, where accesses are of 2 bytes, which no copy is, or two rows do
// not fit: this row's are loaded to registers, all of them before any is used.
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS, bool AHEAD, bool CENTRED>
struct Rows {
    using Pack = Packed<T, N>;
    static constexpr int TENSORS = 3, BLOCK = THREADS * ROWS;
    const T *x_rows, *dout_rows, *dresidual_rows;
    const float *means, *rstds;
    long long rows;
    Pack* copies;  // [stage][tensor][pack][thread]
    int stage = 1;
    float mean = 0, rstd = 0, next_mean = 0, next_rstd = 0;
    Pack loaded[AHEAD ? 1 : TENSORS][AHEAD ? 1 : PACKS];

    __device__ void ask(long long r) {
        if constexpr (AHEAD) {
            if (r < rows) {
                Pack* to = copies + (stage ^ 1) * (TENSORS * PACKS * BLOCK);
                for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
                    copy_async<sizeof(Pack)>(to + p * BLOCK, x_rows + r * C + i);
                    copy_async<sizeof(Pack)>(to + (PACKS + p) * BLOCK, dout_rows + r * C + i);
                    if (dresidual_rows)
                        copy_async<sizeof(Pack)>(to + (2 * PACKS + p) * BLOCK, dresidual_rows + r * C + i);
                });
                if constexpr (CENTRED) next_mean = means[r];
                next_rstd = rstds[r];
            }
            close_copies();  // a group a row, also where there is none
        }
    }

    __device__ void begin(long long r, long long next) {
        if constexpr (AHEAD) {
            mean = next_mean, rstd = next_rstd;
            stage ^= 1;
            ask(next);
            wait_copies<1>();
        } else {
            for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
                loaded[0][p] = load_once<N>(x_rows + r * C + i);
                loaded[1][p] = load_once<N>(dout_rows + r * C + i);
                if (dresidual_rows) loaded[2][p] = load_once<N>(dresidual_rows + r * C + i);
            });
            if constexpr (CENTRED) mean = means[r];
            rstd = rstds[r];
        }
    }

    __device__ Packed<float, N> of(int tensor, int p) const {
        if constexpr (AHEAD)
            return load_floats<N>(reinterpret_cast<const T*>(copies + ((stage * TENSORS + tensor) * PACKS + p) * BLOCK));
        else
            return to_floats(loaded[tensor][p]);
    }
    __device__ Packed<float, N> x(int p) const { return of(0, p); }
    __device__ Packed<float, N> dout(int p) const { return of(1, p); }
    __device__ Packed<float, N> dresidual(int p) const { return dresidual_rows ? of(2, p) : filled<N>(0); }
};
