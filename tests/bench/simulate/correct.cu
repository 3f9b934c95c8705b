// Correct kernels that come close to what the simulator reports: it must stay silent, whatever the order of threads.
// Each adds up or rearranges `in` (n elements, n a multiple of 64 and of the grid) into `out`; test_silent.py knows what.
#define KERNEL extern "C" __global__ void
#define ARGUMENTS float *out, const float *in, unsigned *counters, int n

constexpr int THREADS = 64;

__device__ float warp_sum(float x) {
    for (int offset = 16; offset; offset /= 2) x += __shfl_xor_sync(0xffffffff, x, offset);
    return x;
}
__device__ float block_sum(float x) {
    __shared__ float parts[THREADS / 32];
    x = warp_sum(x);
    __syncthreads();  // the last call's parts have been read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    return parts[0] + parts[1];
}

// out[b] = sum of the block's part, computed twice through the same shared memory.
KERNEL block_sums(ARGUMENTS) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    float once = block_sum(in[i]), twice = block_sum(in[i] + once);
    if (threadIdx.x == 0) out[blockIdx.x] = once + 0 * twice;
}
// out[0] = sum of all, by the block that finishes last.
KERNEL last_block_adds(ARGUMENTS) {
    __shared__ bool last;
    float sum = block_sum(in[blockIdx.x * THREADS + threadIdx.x]);
    if (threadIdx.x == 0) {
        out[1 + blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(counters, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last) {
        float total = block_sum(threadIdx.x < gridDim.x ? out[1 + threadIdx.x] : 0);
        if (threadIdx.x == 0) out[0] = total;
    }
}
// out[0] = sum of all, by atomics.
KERNEL atomic_sums(ARGUMENTS) { atomicAdd(out, in[blockIdx.x * THREADS + threadIdx.x]); }
// out = in reversed within each block, through padded shared memory.
KERNEL reverse(ARGUMENTS) {
    extern __shared__ float buffer[];
    int first = blockIdx.x * THREADS;
    buffer[threadIdx.x] = in[first + threadIdx.x];
    __syncthreads();
    out[first + threadIdx.x] = buffer[THREADS - 1 - threadIdx.x];
}
// Lanes exchange through shared memory, and all threads store the same flag, which is no race.
KERNEL exchange_in_warps(ARGUMENTS) {
    __shared__ float buffer[THREADS];
    __shared__ int flag;
    int first = blockIdx.x * THREADS;
    flag = 1;
    for (int offset = 1; offset < 32; offset *= 2) {
        buffer[threadIdx.x] = in[first + threadIdx.x];
        __syncwarp();
        out[first + threadIdx.x] = buffer[threadIdx.x ^ offset ^ 1];
        __syncwarp();
    }
    buffer[threadIdx.x] = static_cast<float>(flag);
}
// The first warp fills two buffers in turn, the second empties them: named barriers for full and empty.
KERNEL producer_and_consumer(ARGUMENTS) {
    __shared__ float buffer[2][32];
    int lane = threadIdx.x % 32, rounds = n / 32;
    if (threadIdx.x < 32) {
        for (int r = 0; r < rounds; r++) {
            if (r >= 2) asm volatile("bar.sync %0, 64;" ::"r"(3 + r % 2) : "memory");
            buffer[r % 2][lane] = in[r * 32 + lane];
            asm volatile("bar.arrive %0, 64;" ::"r"(1 + r % 2) : "memory");
        }
    } else {
        for (int r = 0; r < rounds; r++) {
            asm volatile("bar.sync %0, 64;" ::"r"(1 + r % 2) : "memory");
            out[r * 32 + lane] = buffer[r % 2][31 - lane];
            if (r + 2 < rounds) asm volatile("bar.arrive %0, 64;" ::"r"(3 + r % 2) : "memory");
        }
    }
}
// A ring of two buffers filled by cp.async, one copy ahead of its use.
KERNEL copies_ahead(ARGUMENTS) {
    __shared__ float buffer[2][THREADS];
    int rounds = n / THREADS;
    auto fetch = [&](int r) {
        unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(&buffer[r % 2][threadIdx.x]));
        if (r < rounds) asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(in + r * THREADS + threadIdx.x) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    fetch(0);
    for (int r = 0; r < rounds; r++) {
        fetch(r + 1);
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        out[r * THREADS + threadIdx.x] = buffer[r % 2][THREADS - 1 - threadIdx.x];
        __syncthreads();
    }
}
// A thread waits for another's flag: release and acquire.
KERNEL flag_with_fences(ARGUMENTS) {
    int first = blockIdx.x * THREADS;
    volatile unsigned* flags = counters + blockIdx.x * THREADS;
    out[first + threadIdx.x] = in[first + threadIdx.x];
    __threadfence();
    flags[threadIdx.x] = 1;
    while (flags[threadIdx.x ^ 33] == 0) {}
    __threadfence();
    float other = out[first + (threadIdx.x ^ 33)];
    __syncthreads();
    out[first + threadIdx.x] = other;
}
// A sum through volatile memory, whose steps __syncwarp orders.
KERNEL volatile_sum(ARGUMENTS) {
    __shared__ float buffer[THREADS];
    volatile float* sums = buffer;
    sums[threadIdx.x] = in[blockIdx.x * THREADS + threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 32) {
        for (int k = 32; k; k /= 2) {
            float sum = sums[threadIdx.x] + (threadIdx.x + k < THREADS ? sums[threadIdx.x + k] : 0);
            __syncwarp();
            sums[threadIdx.x] = sum;
            __syncwarp();
        }
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}
// A lane waits for a lane of its own warp, by a flag; each knows of the other's data by fences.
KERNEL flag_in_a_warp(ARGUMENTS) {
    volatile unsigned* flags = counters + blockIdx.x;
    int first = blockIdx.x * THREADS;
    if (threadIdx.x == 3) {
        out[first] = in[first];
        __threadfence();
        *flags = 1;
    } else if (threadIdx.x == 5) {
        while (*flags == 0) {}
        __threadfence();
        out[first + 1] = out[first];
    }
}
// Threads return before barriers of the others, some of them while others wait already.
KERNEL returned_early(ARGUMENTS) {
    __shared__ float buffer[THREADS];
    int first = blockIdx.x * THREADS;
    if (threadIdx.x >= 40) return;
    buffer[threadIdx.x] = in[first + threadIdx.x];
    __syncthreads();
    float other = buffer[39 - threadIdx.x];
    if (threadIdx.x >= 33) {
        out[first + threadIdx.x] = other;
        return;
    }
    __syncthreads();
    buffer[threadIdx.x] = other;
    __syncthreads();
    out[first + threadIdx.x] = buffer[threadIdx.x];
}
// Half warps add up on their own, and the active lanes of a branch elect one that counts them.
KERNEL groups(ARGUMENTS) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffff : 0xffff0000;
    float sum = in[i];
    if (threadIdx.x % 32 < 16) {
        for (int offset = 8; offset; offset /= 2) sum += __shfl_xor_sync(half, sum, offset, 16);
    } else {
        for (int offset = 1; offset < 16; offset *= 2) sum += __shfl_xor_sync(half, sum, offset, 16);
    }
    if (threadIdx.x % 3 == 0) {
        unsigned active = __activemask();
        if (threadIdx.x % 32 == __ffs(active) - 1) atomicAdd(counters, __popc(active));
        __syncwarp(active);
    }
    __syncthreads();
    out[i] = sum;
}
// Loaded as if nobody stored there, before somebody does: an in-place kernel's `const __restrict__`.
KERNEL read_only_until_it_is_stored(ARGUMENTS) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    bool huge = __ldg(out + (i ^ 1)) > 1e38f;
    __syncthreads();
    out[i] = in[i] + huge;
}
// Integer atomics in shared memory: a histogram of signs.
KERNEL histogram(ARGUMENTS) {
    __shared__ unsigned bins[2];
    if (threadIdx.x < 2) bins[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&bins[in[blockIdx.x * THREADS + threadIdx.x] > 0], 1);
    __syncthreads();
    if (threadIdx.x < 2) atomicAdd(counters + threadIdx.x, bins[threadIdx.x]);
}
// Neighbouring bytes and halves of one word belong to different threads.
KERNEL bytes(ARGUMENTS) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    reinterpret_cast<unsigned char*>(counters)[i] = in[i] > 0;
    reinterpret_cast<unsigned short*>(out)[i] = static_cast<unsigned short>(in[i] > 0);
}
