// Rows of one tensor on their way to shared memory while others are worked on: layernorm/vector.cu's and
// rmsnorm/vector.cu's.
#pragma once

#include "common/async_copy.cuh"
#include "common/row.cuh"

// A block, or each of its warps, takes every `step`-th row, and has the next AHEAD of its rows asked for at any time,
// without a register for them. A thread reads only what it copied itself, so there is no barrier. Accesses are of at
// least 4 bytes, as copies are.
//
//     ahead.start(first);
//     for (long long r = first; r < rows; r += step) {
//         Packed<float, N> values[PACKS];
//         ahead.take(r, values);   // r's; from here on those of r + AHEAD * step are on their way
//     }
template <typename T, int C, int N, int PACKS, int THREADS, int ROWS, int AHEAD>
struct RowsAhead {
    using Pack = Packed<T, N>;
    static constexpr int BLOCK = THREADS * ROWS, STAGE = PACKS * BLOCK;
    const T* tensor;
    long long rows, step;
    Pack* copies;  // [stage][pack][thread], from this thread's own on
    int stage = 0;

    __device__ void ask(long long r) {
        if (r < rows)
            for_packs<N, PACKS, THREADS>(C, [&](int p, int i) {
                copy_async<sizeof(Pack)>(copies + stage * STAGE + p * BLOCK, tensor + r * C + i);
            });
        close_copies();  // a group a row, also where there is none
        stage = stage + 1 == AHEAD ? 0 : stage + 1;
    }

    __device__ void start(long long first) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) ask(first + a * step);
    }

    __device__ void take(long long r, Packed<float, N> (&values)[PACKS]) {
        wait_copies<AHEAD - 1>();
        for_packs<N, PACKS, THREADS>(C, [&](int p, int) {
            values[p] = load_floats<N>(reinterpret_cast<const T*>(copies + stage * STAGE + p * BLOCK));
        });
        ask(r + AHEAD * step);
    }
};
