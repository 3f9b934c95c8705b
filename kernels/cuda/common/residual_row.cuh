// A row of x and one of residual, as they are in memory, until they are added: residual_layernorm/shared.cu's and
// residual_rmsnorm's.
#pragma once

#include "common/row.cuh"

template <typename T, int C, int N, int PACKS, int THREADS>
struct ResidualRow {
    Packed<T, N> x[PACKS], residual[PACKS];

    // Both are asked for before either is used.
    __device__ void ask(const T* x_row, const T* residual_row) {
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
            x[p] = load_once<N>(x_row + i);
            residual[p] = load_once<N>(residual_row + i);
        });
    }

    // Into `sum`, and rounded into residual_out.
    __device__ void add(Packed<float, N> (&sum)[PACKS], T* residual_out) const {
        for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
            Packed<float, N> added = to_floats(residual[p]);
            sum[p] = to_floats(x[p]);
#pragma unroll
            for (int k = 0; k < N; k++) sum[p][k] += added[k];
            store_floats(residual_out + i, sum[p]);
        });
    }
};
