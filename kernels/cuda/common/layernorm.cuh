// LayerNorm of a row in registers: what layernorm/shared.cu and residual_layernorm/shared.cu have in common.
#pragma once

#include "common/row.cuh"

// out = (x - mean) * rstd * weight + bias. The mean is taken in two parts: a sum, which at a large mean is rounded
// coarsely, and the mean of what is left over it. x - about loses no digits where x is near it.
template <typename T, int C, int N, int PACKS, int THREADS>
__device__ void normalise_row(T* out, float* mean_out, float* rstd_out, const Packed<float, N> (&x)[PACKS],
                              const T* weight, const T* bias, float eps) {
    constexpr float SHARE = 1.0f / C;  // of an element in a mean
    float sum = 0;
    for_packs<N, PACKS, THREADS>(C, [&](int p, int) {
#pragma unroll
        for (int k = 0; k < N; k++) sum += x[p][k];
    });
    float about = block_sum<THREADS>(sum) * SHARE;

    float rest = 0, squares = 0;
    for_packs<N, PACKS, THREADS>(C, [&](int p, int) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            float centred = x[p][k] - about;
            rest += centred;
            squares += centred * centred;
        }
    });
    rest = block_sum<THREADS>(rest) * SHARE;
    squares = block_sum<THREADS>(squares) * SHARE;
    float variance = squares - rest * rest;
    float rstd = rsqrtf((variance < 0 ? 0 : variance) + eps);  // a NaN is not less, and stays

    for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
        Packed<float, N> w = load_floats<N>(weight + i), b = load_floats<N>(bias + i), y;
#pragma unroll
        for (int k = 0; k < N; k++) y[k] = ((x[p][k] - about) * rstd - rest * rstd) * w[k] + b[k];
        store_floats(out + i, y);
    });
    if (threadIdx.x % THREADS == 0) {
        // Where the mean is small beside the spread the first sum is the sharper one: x - about is then rounded alike
        // for all x of one binade, and the rest drifts.
        *mean_out = about * about * (rstd * rstd) < 1 ? about : about + rest;
        *rstd_out = rstd;
    }
}
