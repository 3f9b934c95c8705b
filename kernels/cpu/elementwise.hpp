// One output value from the input values at the same place: the loop of gelu/simd.cpp and residual/simd.cpp.
#pragma once

#include "common.hpp"

// A thread takes whole blocks, so that starting one costs nothing against the work in it.
constexpr int64_t BLOCK = 4096;

template <bool STREAM, class F>
INLINE void elementwise_blocks(T* out, int64_t N, F f) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t block = 0; block < N; block += BLOCK) {
            int64_t length = N - block < BLOCK ? N - block : BLOCK;
            for_vectors(length, [&](int64_t i, int64_t n, int64_t) {
                put_part<STREAM>(out + block + i, f(block + i, n), n);
            });
        }
        if (STREAM) stream_fence();
    }
}

// out[i : i + n] = f(i, n), a vec, for all of N.
template <class F>
INLINE void elementwise(T* out, int64_t N, F f) {
    if (worth_streaming(out, N * sizeof(T)))
        elementwise_blocks<true>(out, N, f);
    else
        elementwise_blocks<false>(out, N, f);
}
