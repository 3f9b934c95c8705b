// A ring of stages in shared memory between one thread that has tiles copied into them and warps that use them up
// (sm_90 and later). Uses of the stages are counted from 0; the n-th is of stage n % STAGES.
//
//     if (threadIdx.x == 0) ring.make(WARPS);              // and fence_barriers, __syncthreads
//
//     ring.fill(n, bytes);                                  // one thread, in the order of n
//     load_tile(tiles[ring.stage(n)], …, ring.full(n));
//
//     ring.wait(n);                                         // every warp that uses it
//     …
//     ring.give_back(n);                                    // one lane of each
//
// PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
#pragma once

#include "common/hopper.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

template <int STAGES>
struct Ring {
    Barrier filled[STAGES], empty[STAGES];

    __device__ static int stage(int n) { return n % STAGES; }
    __device__ static int round(int n) { return n / STAGES; }
    __device__ Barrier* full(int n) { return &filled[stage(n)]; }

    // `users`: arrivals that give a stage back.
    __device__ void make(int users) {
        for (int s = 0; s < STAGES; s++) {
            make_barrier(&filled[s], 1);
            make_barrier(&empty[s], users);
        }
    }

    // Waits until the use before has been given back, and announces so many bytes.
    __device__ void fill(int n, int bytes) {
        if (round(n) > 0) wait_phase(&empty[stage(n)], (round(n) - 1) % 2);
        arrive_expecting(full(n), bytes);
    }

    __device__ void wait(int n) { wait_phase(full(n), round(n) % 2); }
    __device__ void give_back(int n) { arrive(&empty[stage(n)]); }
};

#endif
