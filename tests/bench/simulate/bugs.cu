// Planted bugs, one to a kernel: the lines marked with `// BUG` are those that the simulator's report must name.
// All kernels take the same arguments: out and in have n elements; a block has 64 threads unless the test says otherwise.

#define KERNEL extern "C" __global__ void
#define ARGUMENTS float *out, const float *in, unsigned *counters, int n

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
__device__ void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ void copies_wait() { asm volatile("cp.async.commit_group; cp.async.wait_group 0;" ::: "memory"); }
__device__ int opaque(int x) {  // the compiler cannot see what this answers
    asm volatile("" : "+r"(x));
    return x;
}

// --- memory ---------------------------------------------------------------------------------------------------------

KERNEL read_past_the_end(ARGUMENTS) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) out[i == n ? 0 : i] = in[i];  // BUG
}
KERNEL write_past_the_end(ARGUMENTS) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i + opaque(3)] = 1;  // BUG
}
KERNEL read_before_the_beginning(ARGUMENTS) {
    int i = threadIdx.x;
    out[i] = in[i - opaque(1)];  // BUG
}
KERNEL null_pointer(ARGUMENTS) {
    counters[threadIdx.x] = 1;  // BUG
}
KERNEL write_to_an_input(ARGUMENTS) {
    const_cast<float*>(in)[threadIdx.x] = 2;  // BUG
}
KERNEL misaligned_vector(ARGUMENTS) {
    if (threadIdx.x < 8) {
        float4 v = *reinterpret_cast<const float4*>(in + 4 * threadIdx.x + opaque(1));  // BUG
        out[threadIdx.x] = v.x + v.w;
    }
}
KERNEL misaligned_shared(ARGUMENTS) {
    __shared__ float buffer[128];
    buffer[threadIdx.x] = buffer[threadIdx.x + 64] = in[threadIdx.x];
    __syncthreads();
    float2 v = *reinterpret_cast<float2*>(buffer + threadIdx.x + opaque(0));  // BUG
    out[threadIdx.x] = v.x + v.y;
}
KERNEL shared_past_the_end(ARGUMENTS) {
    extern __shared__ float dynamic[];
    dynamic[threadIdx.x + opaque(1)] = in[threadIdx.x];  // BUG
    __syncthreads();
    out[threadIdx.x] = dynamic[threadIdx.x + 1];
}
KERNEL shared_never_written(ARGUMENTS) {
    __shared__ float buffer[65];
    buffer[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = buffer[threadIdx.x + opaque(1)];  // BUG
}
KERNEL local_past_the_end(ARGUMENTS) {
    float local[8];
    for (int k = 0; k < 8; k++) local[opaque(k)] = in[k];
    out[threadIdx.x] = local[opaque(8)];  // BUG
}
KERNEL too_much_local(ARGUMENTS) {
    float local[100000];
    for (int k = 0; k < 100000; k += 100) local[opaque(k)] = in[threadIdx.x];
    out[threadIdx.x] = local[opaque(0)];
}
KERNEL division_by_zero(ARGUMENTS) {
    out[threadIdx.x] = static_cast<float>(n / opaque(static_cast<int>(threadIdx.x) - 5));  // BUG
}

// --- races ----------------------------------------------------------------------------------------------------------

KERNEL missing_barrier(ARGUMENTS) {
    __shared__ float buffer[64];
    buffer[threadIdx.x] = in[threadIdx.x];  // BUG
    out[threadIdx.x] = buffer[threadIdx.x / 32 * 32];  // BUG
}
KERNEL missing_barrier_before_reuse(ARGUMENTS) {
    __shared__ float buffer[64];
    buffer[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    float other = buffer[63 - threadIdx.x];  // BUG
    buffer[threadIdx.x] = other * 2 + 1;     // BUG
    __syncthreads();
    out[threadIdx.x] = buffer[threadIdx.x ^ 1];
}
KERNEL two_writers(ARGUMENTS) {
    __shared__ float sum;
    sum = in[threadIdx.x];  // BUG
    __syncthreads();
    out[threadIdx.x] = sum;
}
KERNEL missing_syncwarp(ARGUMENTS) {
    __shared__ float buffer[64];
    buffer[threadIdx.x] = in[threadIdx.x];  // BUG
    float sum = __shfl_xor_sync(0xffffffff, in[threadIdx.x], 1);
    out[threadIdx.x] = sum + buffer[threadIdx.x ^ 1];  // BUG
}
KERNEL warp_synchronous_sum(ARGUMENTS) {
    __shared__ float buffer[64];
    buffer[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    volatile float* sums = buffer;
    if (threadIdx.x < 32) {
        sums[threadIdx.x] += sums[threadIdx.x + 32];
        sums[threadIdx.x] += sums[threadIdx.x + 16];  // BUG
        sums[threadIdx.x] += sums[threadIdx.x + 8];
    }
    out[threadIdx.x] = buffer[0];
}
KERNEL warp_synchronous_integers(ARGUMENTS) {
    __shared__ int buffer[64];
    buffer[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    volatile int* sums = buffer;
    for (int k = 16; k; k /= 2) {
        if (threadIdx.x < 32) sums[threadIdx.x] += sums[threadIdx.x + k];  // BUG
    }
    __syncthreads();
    out[threadIdx.x] = buffer[0];
}
KERNEL volatile_between_warps(ARGUMENTS) {
    __shared__ float buffer[64];
    volatile float* seen = buffer;
    seen[threadIdx.x] = 0;
    __syncthreads();
    seen[threadIdx.x] = in[threadIdx.x] + 1;  // BUG
    out[threadIdx.x] = seen[threadIdx.x ^ 32];  // BUG
}
KERNEL lanes_exchange_through_global(ARGUMENTS) {
    out[threadIdx.x] = in[threadIdx.x] + 1;  // BUG
    float sum = 0;
    for (int k = 0; k < 32; k++) sum += out[threadIdx.x / 32 * 32 + k];  // BUG
    __syncwarp();
    out[threadIdx.x] = sum;
}
KERNEL blocks_add_without_atomics(ARGUMENTS) {
    out[threadIdx.x] += in[blockIdx.x * blockDim.x + threadIdx.x];  // BUG
}
KERNEL last_block_without_fence(ARGUMENTS) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        out[1 + blockIdx.x] = in[blockIdx.x] + 1;  // BUG
        last = atomicAdd(counters, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float sum = 0;
        for (int b = 0; b < gridDim.x; b++) sum += out[1 + b];  // BUG
        out[0] = sum;
    }
}
KERNEL loads_past_the_stores(ARGUMENTS) {
    out[threadIdx.x] = in[threadIdx.x] + 1;  // BUG
    __syncthreads();
    float neighbours = __ldg(out + (threadIdx.x ^ 1));  // BUG
    __syncthreads();
    out[threadIdx.x] = neighbours;
}
KERNEL atomic_and_plain(ARGUMENTS) {
    atomicAdd(counters, 1);  // BUG
    if (threadIdx.x == 40) counters[0] = 7;  // BUG
}
KERNEL copy_over_what_is_read(ARGUMENTS) {
    __shared__ float4 buffer[64];
    copy_async(&buffer[threadIdx.x], in + 4 * threadIdx.x);
    copies_wait();
    __syncthreads();
    out[threadIdx.x] = buffer[63 - threadIdx.x].x;  // BUG
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&buffer[threadIdx.x])), "l"(in) : "memory");  // BUG
    copies_wait();
}
KERNEL arrives_too_early(ARGUMENTS) {
    __shared__ float buffer[32];
    if (threadIdx.x >= 32) {
        asm volatile("bar.arrive 1, 64;" ::: "memory");
        buffer[threadIdx.x - 32] = in[threadIdx.x];  // BUG
    } else {
        asm volatile("bar.sync 1, 64;" ::: "memory");
        out[threadIdx.x] = buffer[threadIdx.x];  // BUG
    }
}

// --- barriers -------------------------------------------------------------------------------------------------------

KERNEL different_barriers(ARGUMENTS) {
    if (threadIdx.x < 32) {
        __syncthreads();  // BUG
        out[threadIdx.x] = 1;
    } else {
        out[threadIdx.x] = 2;
        __syncthreads();  // BUG
    }
}
KERNEL waits_for_too_many(ARGUMENTS) {
    asm volatile("bar.sync 1, 96;" ::: "memory");  // BUG
    out[threadIdx.x] = 1;
}
KERNEL waits_for_ever(ARGUMENTS) {
    while (atomicAdd(counters, 0) == 0) {}  // BUG
    out[threadIdx.x] = 1;
}
KERNEL barrier_with_no_warps(ARGUMENTS) {
    asm volatile("bar.sync 1, 33;" ::: "memory");  // BUG
    out[threadIdx.x] = 1;
}

// --- warp operations ------------------------------------------------------------------------------------------------

KERNEL lane_not_in_its_mask(ARGUMENTS) {
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffff, in[threadIdx.x], 1);  // BUG
}
KERNEL shuffle_from_outside_the_mask(ARGUMENTS) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0x0000ffff, in[threadIdx.x], 8);  // BUG
}
KERNEL shuffle_after_lanes_returned(ARGUMENTS) {
    if (threadIdx.x >= 50) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffffff, in[threadIdx.x], 16);  // BUG
}
KERNEL vote_after_lanes_returned(ARGUMENTS) {
    if (threadIdx.x >= 50) return;
    out[threadIdx.x] = static_cast<float>(__ballot_sync(0xffffffff, in[threadIdx.x] > 0));  // BUG
}
KERNEL shuffle_from_lanes_that_do_not_exist(ARGUMENTS) {
    out[threadIdx.x] = __shfl_down_sync(0xffffffff, in[threadIdx.x], 16);  // BUG
}
KERNEL masks_differ(ARGUMENTS) {
    unsigned mask = threadIdx.x % 32 < 16 ? 0xffffffff : 0xffff0001;
    out[threadIdx.x] = __shfl_sync(mask, in[threadIdx.x], 0);  // BUG
}
KERNEL operations_differ(ARGUMENTS) {
    float x = in[threadIdx.x];
    if (threadIdx.x % 32 < 16) {
        out[threadIdx.x] = __shfl_xor_sync(0xffffffff, x, 1);  // BUG
    } else {
        out[threadIdx.x] = static_cast<float>(__ballot_sync(0xffffffff, x > 0));  // BUG
    }
}

// --- asynchronous copies and errors of the kernel's own -------------------------------------------------------------

KERNEL missing_wait(ARGUMENTS) {
    __shared__ float4 buffer[64];
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&buffer[threadIdx.x])), "l"(in) : "memory");  // BUG
    asm volatile("cp.async.commit_group;" ::: "memory");
    __syncthreads();
    out[threadIdx.x] = buffer[threadIdx.x].x;  // BUG
}
KERNEL misaligned_copy(ARGUMENTS) {
    __shared__ float4 buffer[64];
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&buffer[threadIdx.x])), "l"(in + 1) : "memory");  // BUG
    copies_wait();
    out[threadIdx.x] = buffer[threadIdx.x].x;
}
KERNEL write_during_a_copy(ARGUMENTS) {
    __shared__ float4 buffer[64];
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&buffer[threadIdx.x])), "l"(in) : "memory");  // BUG
    buffer[threadIdx.x].y = 1;  // BUG
    copies_wait();
    out[threadIdx.x] = buffer[threadIdx.x].y;
}
KERNEL failed_assertion(ARGUMENTS) {
    assert(threadIdx.x < n - 1);  // BUG
    out[threadIdx.x] = 1;
}
KERNEL reached_trap(ARGUMENTS) {
    if (threadIdx.x == n - 1) __trap();  // BUG
    out[threadIdx.x] = 1;
}
