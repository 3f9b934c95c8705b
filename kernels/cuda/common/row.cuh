// A row in registers: C elements spread over THREADS threads, PACKS packs of N each. The threads are one warp of a
// block of ROWS warps, or a whole block (then ROWS is 1). kernels/cuda/packing.py chooses the four numbers.
#pragma once

#include "common/packed.cuh"
#include "common/reduce.cuh"

// f(p, i) for each of this thread's packs that lies in [0, C): its number p, a constant after unrolling so that arrays
// indexed by it stay in registers, and the row's element i where it begins. Neighbouring threads, neighbouring packs.
template <int N, int PACKS, int THREADS, typename F>
__device__ void for_packs(int C, F f) {
    int first = threadIdx.x % THREADS * N;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        int i = first + p * THREADS * N;
        if (i < C) f(p, i);
    }
}
