// Copies from global to shared memory that go on beside the threads' own work (sm_80 and later). A thread starts
// copies, closes a group of them, and later waits until all but its newest groups have landed; other threads may read
// what it copied after a barrier.
//
//     for (…) copy_async<16>(&tile[stage][i], from + i);
//     close_copies();
//     …                       // the next stages
//     wait_copies<STAGES - 2>();
//     __syncthreads();
//
// PTX ISA, "Data Movement and Conversion Instructions: Non-bulk copy".
#pragma once

#include "common/shared_address.cuh"

// BYTES is 4, 8 or 16, and both addresses are multiples of it. 16 bytes go past the L1 cache. cp.async
template <int BYTES>
__device__ void copy_async(void* to_shared, const void* from_global) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to_shared)), "l"(from_global)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to_shared)), "l"(from_global),
                     "n"(BYTES)
                     : "memory");
}

// Writes zeros, and reads nothing, where not `valid`: for the edges of a matrix. cp.async with src-size
template <int BYTES>
__device__ void copy_async_or_zero(void* to_shared, const void* from_global, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    int read = valid ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
                     "l"(from_global), "r"(read)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to_shared)),
                     "l"(from_global), "n"(BYTES), "r"(read)
                     : "memory");
}

// The copies since the last call are a group. cp.async.commit_group
__device__ inline void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most OPEN of this thread's groups, the newest, are on their way. cp.async.wait_group
template <int OPEN>
__device__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
}
