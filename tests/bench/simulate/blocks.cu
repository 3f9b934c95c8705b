// Blocks that wait for each other. Kernels of 64 threads; the lines marked with `// BUG` are those a report must name.

#define KERNEL extern "C" __global__ void
#define ARGUMENTS float *out, const float *in, unsigned *counters, int n

const int THREADS = 64;

__device__ void lock(unsigned* word) {
    while (atomicCAS(word, 0, 1) != 0) {}
}
__device__ void wait_for(volatile unsigned* word, unsigned value) {
    while (*word != value) {}
}
__device__ float mine(const float* in) { return in[blockIdx.x * THREADS + threadIdx.x]; }

// --- right ----------------------------------------------------------------------------------------------------------

KERNEL sums_under_a_lock(ARGUMENTS) {
    if (threadIdx.x == 0) lock(counters);
    __syncthreads();
    __threadfence();
    out[threadIdx.x] += mine(in);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(counters, 0);
}
// The same with the orders spelled at the atomics.
KERNEL sums_under_an_ordered_lock(ARGUMENTS) {
    unsigned old = 1;
    if (threadIdx.x == 0) {
        while (old) asm volatile("atom.global.acquire.gpu.cas.b32 %0, [%1], 0, 1;" : "=r"(old) : "l"(counters) : "memory");
    }
    __syncthreads();
    out[threadIdx.x] += mine(in);
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("atom.release.gpu.global.exch.b32 %0, [%1], 0;" : "=r"(old) : "l"(counters) : "memory");
}
// Each block waits for the one before it.
KERNEL in_turn(ARGUMENTS) {
    if (threadIdx.x == 0) wait_for(counters, blockIdx.x);
    __syncthreads();
    __threadfence();
    out[threadIdx.x] = out[threadIdx.x] * 0.5f + mine(in);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(counters, 1);
}
// Each block waits for the one behind it.
KERNEL in_turn_backwards(ARGUMENTS) {
    if (threadIdx.x == 0) wait_for(counters, gridDim.x - 1 - blockIdx.x);
    __syncthreads();
    __threadfence();
    out[threadIdx.x] = out[threadIdx.x] * 0.5f + mine(in);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(counters, 1);
}
// All blocks wait for all: a barrier of the grid.
KERNEL grid_barrier(ARGUMENTS) {
    __shared__ float kept[THREADS];
    kept[threadIdx.x] = mine(in);
    out[blockIdx.x * THREADS + threadIdx.x] = 2 * kept[threadIdx.x];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(counters, 1);
        wait_for(counters, gridDim.x);
    }
    __syncthreads();
    __threadfence();
    float other = out[(blockIdx.x + 1) % gridDim.x * THREADS + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(counters + 1, 1);
        wait_for(counters + 1, gridDim.x);
    }
    __syncthreads();
    __threadfence();
    out[blockIdx.x * THREADS + threadIdx.x] = other + kept[threadIdx.x];
}

// Blocks of any size: all of them wait for the last one.
KERNEL waits_for_the_last(ARGUMENTS) {
    if (threadIdx.x == 0 && blockIdx.x == gridDim.x - 1) atomicExch(counters, 1);
    if (threadIdx.x == 0) wait_for(counters, 1);
    __syncthreads();
    if (threadIdx.x < THREADS) out[blockIdx.x * THREADS + threadIdx.x] = mine(in);
}

// --- wrong ----------------------------------------------------------------------------------------------------------

KERNEL lock_without_fence(ARGUMENTS) {
    if (threadIdx.x == 0) lock(counters);
    __syncthreads();
    out[threadIdx.x] += mine(in);  // BUG
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(counters, 0);
}
KERNEL fence_for_the_block_alone(ARGUMENTS) {
    if (threadIdx.x == 0) lock(counters);
    __syncthreads();
    __threadfence_block();
    out[threadIdx.x] += mine(in);  // BUG
    __threadfence_block();
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(counters, 0);
}
KERNEL order_for_the_block_alone(ARGUMENTS) {
    unsigned old = 1;
    if (threadIdx.x == 0) {
        while (old) asm volatile("atom.global.acquire.cta.cas.b32 %0, [%1], 0, 1;" : "=r"(old) : "l"(counters) : "memory");
    }
    __syncthreads();
    out[threadIdx.x] += mine(in);  // BUG
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("atom.release.cta.global.exch.b32 %0, [%1], 0;" : "=r"(old) : "l"(counters) : "memory");
}
// The first warp gives the lock back before the second has stored.
KERNEL unlocked_too_early(ARGUMENTS) {
    if (threadIdx.x == 0) lock(counters);
    __syncthreads();
    __threadfence();
    out[threadIdx.x] += mine(in);  // BUG
    __threadfence();
    if (threadIdx.x == 0) atomicExch(counters, 0);
}
// What a block stores after it gave the lock back is not under the lock.
KERNEL stores_after_unlocking(ARGUMENTS) {
    if (threadIdx.x == 0) lock(counters);
    __syncthreads();
    __threadfence();
    float sum = out[threadIdx.x] + mine(in);
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(counters, 0);
    __syncthreads();
    out[threadIdx.x] = sum;  // BUG
}
KERNEL two_locks_crosswise(ARGUMENTS) {
    unsigned me = blockIdx.x % 2;
    if (threadIdx.x == 0) {
        lock(counters + me);
        atomicAdd(counters + 2, 1);
        while (atomicAdd(counters + 2, 0) < 2) {}
        while (atomicCAS(counters + 1 - me, 0, 1) != 0) {}  // BUG
    }
    __syncthreads();
    out[threadIdx.x] = 1;
}
KERNEL lock_taken_twice(ARGUMENTS) {
    if (threadIdx.x == 0) lock(counters);
    while (atomicCAS(counters, 0, 1) != 0) {}  // BUG
}
// Memory changes all the time, and it leads nowhere.
KERNEL counts_while_it_waits(ARGUMENTS) {
    while (atomicAdd(counters, 0) == 0) atomicAdd(counters + 1 + blockIdx.x, 1);  // BUG
}
KERNEL waits_by_plain_loads(ARGUMENTS) {
    unsigned seen = 0;
    while (!seen) asm volatile("ld.global.b32 %0, [%1];" : "=r"(seen) : "l"(counters));  // BUG
}
KERNEL loops_for_ever(ARGUMENTS) {
    int more = 1;
    while (more) asm volatile("mov.u32 %0, 1;" : "=r"(more));  // BUG
}
