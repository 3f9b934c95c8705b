// RMSNorm of a row in registers: what rmsnorm/shared.cu and residual_rmsnorm's kernels have in common.
#pragma once

#include "common/row.cuh"

// out = x * rstd * weight, rstd = (mean(x^2) + eps)^-1/2
template <typename T, int C, int N, int PACKS, int THREADS>
__device__ void scale_row(T* out, float* rstd_out, const Packed<float, N> (&x)[PACKS], const T* weight, float eps) {
    constexpr float SHARE = 1.0f / C;  // of an element in a mean
    float squares = 0;
    for_packs<N, PACKS, THREADS>(C, [&](int p, int) {
#pragma unroll
        for (int k = 0; k < N; k++) squares += x[p][k] * x[p][k];
    });
    float rstd = rsqrtf(block_sum<THREADS>(squares) * SHARE + eps);

    for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
        Packed<float, N> w = load_floats<N>(weight + i), y;
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = x[p][k] * rstd * w[k];
        store_floats(out + i, y);
    });
    if (threadIdx.x % THREADS == 0) *rstd_out = rstd;
}
