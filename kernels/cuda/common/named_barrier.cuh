// A barrier of some of a block's warps: each of so many threads waits until all of them have come, and what they wrote
// before is there for the others. PTX ISA, "Parallel Synchronization and Communication Instructions: bar, barrier".
#pragma once

// `number` is 1 to 15 (0 is that of __syncthreads), `threads` a multiple of 32. bar.sync
__device__ inline void named_barrier(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Comes to it, and does not wait. bar.arrive
__device__ inline void arrive_at_named_barrier(int number, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
