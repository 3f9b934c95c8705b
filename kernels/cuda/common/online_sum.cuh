// The sum of exponentials in one pass (Milakov & Gimelshein 2018): the largest value is not known before the end, so the
// sum is kept relative to the largest so far and rescaled when that grows.
#pragma once

#include "common/math.cuh"
#include "common/packed.cuh"

// Of the values that one thread has seen, the largest, and the sum of exp(value - largest).
struct OnlineSum {
    float largest = LOWEST, sum = 0;

    // A batch costs one exponential a value, and one for the sum so far.
    template <int N, int PACKS>
    __device__ void add(const Packed<float, N> (&values)[PACKS]) {
        float before = largest;
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int k = 0; k < N; k++) largest = fmaxf(largest, values[p][k]);
        sum *= exp_approx(before - largest);
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int k = 0; k < N; k++) sum += exp_approx(values[p][k] - largest);
    }

    template <int N>
    __device__ void add(const Packed<float, N>& values) {
        const Packed<float, N> batch[1] = {values};
        add(batch);
    }
};
