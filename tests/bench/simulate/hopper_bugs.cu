// Planted bugs in the use of Hopper's instructions, one to a kernel: the lines marked with `// BUG` are those that the
// simulator's report must name. `map` is that of a 64 x 64 bf16 matrix in tiles of 16 x 64 without a swizzle.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/async_copy.cuh"
#include "common/hopper.cuh"

#define KERNEL extern "C" __global__ void
#define ARGUMENTS unsigned *out, const unsigned *in, const __grid_constant__ TensorMap map
constexpr int THREADS = 128, TILE_BYTES = 16 * 64 * 2;

extern __shared__ __align__(1024) unsigned char shared[];
__device__ unsigned* words() { return reinterpret_cast<unsigned*>(shared); }

KERNEL barrier_never_made(ARGUMENTS) {
    __shared__ Barrier barrier;
    arrive(&barrier);  // BUG
    out[threadIdx.x] = 0;
}
KERNEL barrier_made_without_a_barrier(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) make_barrier(&barrier, THREADS);  // BUG
    arrive(&barrier);                                       // BUG
    out[threadIdx.x] = 0;
}
KERNEL barrier_overwritten(ARGUMENTS) {
    __shared__ Barrier barrier[2];
    if (threadIdx.x == 0) {
        make_barrier(&barrier[0], 1);
        barrier[in[0] & 0] = in[0];
        arrive(&barrier[0]);  // BUG
    }
}
KERNEL too_many_arrivals(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) make_barrier(&barrier, 2);
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 3;" ::"r"(shared_address(&barrier)) : "memory");  // BUG
}
KERNEL too_few_arrivals(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) make_barrier(&barrier, THREADS);
    __syncthreads();
    if (threadIdx.x) arrive(&barrier);
    wait_phase(&barrier, 0);  // BUG
}
KERNEL more_leave_than_came(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x) return;
    make_barrier(&barrier, 2);
    asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0], 1;" ::"r"(shared_address(&barrier)) : "memory");
    arrive(&barrier);
    asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0], 2;" ::"r"(shared_address(&barrier)) : "memory");  // BUG
}
KERNEL completes_without_leave(ARGUMENTS) {
    __shared__ Barrier barrier;
    unsigned long long state;
    if (threadIdx.x) return;
    make_barrier(&barrier, 1);
    asm volatile("mbarrier.arrive.noComplete.shared.b64 %0, [%1], 1;" : "=l"(state) : "r"(shared_address(&barrier)) : "memory");  // BUG
    out[0] = unsigned(state);
}
KERNEL tile_not_waited_for(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        arrive_expecting(&barrier, TILE_BYTES);
        load_tile(shared, &map, 0, 0, &barrier);  // BUG
    }
    __syncthreads();
    out[threadIdx.x] = words()[threadIdx.x];  // BUG
}
KERNEL too_few_bytes_expected(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        arrive_expecting(&barrier, TILE_BYTES);
        load_tile(shared, &map, 0, 0, &barrier);
        load_tile(shared + TILE_BYTES, &map, 0, 16, &barrier);  // BUG
    }
    __syncthreads();
    wait_phase(&barrier, 0);
    out[threadIdx.x] = words()[threadIdx.x] + words()[TILE_BYTES / 4 + threadIdx.x];  // BUG
}
KERNEL too_many_bytes_expected(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        arrive_expecting(&barrier, TILE_BYTES + 16);
        load_tile(shared, &map, 0, 0, &barrier);
    }
    __syncthreads();
    wait_phase(&barrier, 0);  // BUG
    out[threadIdx.x] = words()[threadIdx.x];
}
KERNEL wrong_parity(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        arrive_expecting(&barrier, TILE_BYTES);
        load_tile(shared, &map, 0, 0, &barrier);  // BUG
    }
    __syncthreads();
    wait_phase(&barrier, 1);
    out[threadIdx.x] = words()[threadIdx.x];  // BUG
}
KERNEL misaligned_tile(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        arrive_expecting(&barrier, TILE_BYTES);
        load_tile(shared + 64, &map, 0, 0, &barrier);  // BUG
    }
}
KERNEL tile_behind_the_end(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        arrive_expecting(&barrier, TILE_BYTES);
        load_tile(shared + 2 * TILE_BYTES - 128, &map, 0, 0, &barrier);  // BUG
    }
}
KERNEL not_a_map(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        load_tile(shared, reinterpret_cast<const TensorMap*>(in), 0, 0, &barrier);  // BUG
    }
}
KERNEL tile_stored_without_a_fence(ARGUMENTS) {
    for (int i = threadIdx.x; i < TILE_BYTES / 4; i += THREADS) words()[i] = in[i];
    __syncthreads();
    if (threadIdx.x == 0) {
        store_tile(&map, 0, 0, shared);  // BUG
        close_stores();
        wait_stores<0>();
    }
}
KERNEL tile_written_during_a_copy(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        arrive_expecting(&barrier, TILE_BYTES);
        load_tile(shared, &map, 0, 0, &barrier);  // BUG
        words()[5] = 0;                           // BUG
    }
}
KERNEL one_lane_copies_twice(ARGUMENTS) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        arrive_expecting(&barrier, 2 * TILE_BYTES);
        load_tile(shared, &map, 0, 0, &barrier);   // BUG
        load_tile(shared, &map, 0, 16, &barrier);  // BUG
    }
}

// --- wgmma ------------------------------------------------------------------------------------------------------------

constexpr int N = 32, MATRICES = (64 + N) * 32;  // bytes: rows of 16 bf16, unswizzled core matrices
__device__ void fill() {
    for (int i = threadIdx.x; i < MATRICES / 4; i += THREADS) words()[i] = 0x3f803f80;
}
__device__ unsigned long long matrix_at(int byte) { return matrix_descriptor(shared + byte, 128, 256, Swizzle::NONE); }
__device__ void multiply(float (&sums)[N / 2]) {
    warpgroup_multiply_add<__nv_bfloat16, N>(sums, matrix_at(0), matrix_at(64 * 32), true);
    close_products();
}

KERNEL products_without_a_proxy_fence(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();
    __syncthreads();
    begin_products();
    multiply(sums);  // BUG
    wait_products<0>();
    out[threadIdx.x] = sums[0];
}
KERNEL products_of_copies_without_a_proxy_fence(ARGUMENTS) {
    float sums[N / 2] = {};
    for (int i = threadIdx.x; i < MATRICES / 16; i += THREADS) copy_async<16>(shared + 16 * i, in + 4 * i);
    close_copies();
    wait_copies<0>();
    __syncthreads();
    begin_products();
    multiply(sums);  // BUG
    wait_products<0>();
    out[threadIdx.x] = sums[0];
}
KERNEL products_without_a_fence(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();
    fence_shared();
    __syncthreads();
    multiply(sums);  // BUG
    wait_products<0>();
    out[threadIdx.x] = sums[0];
}
KERNEL products_without_a_barrier(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();  // BUG
    fence_shared();
    begin_products();
    multiply(sums);  // BUG
    wait_products<0>();
    out[threadIdx.x] = sums[0];
}
KERNEL matrix_reused_too_early(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();
    fence_shared();
    __syncthreads();
    begin_products();
    multiply(sums);  // BUG
    if (threadIdx.x == 77) {
        words()[17] = in[0];  // BUG
        fence_shared();
    }
    wait_products<0>();
    out[threadIdx.x] = sums[0];
}
KERNEL one_warp_of_four(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();
    fence_shared();
    __syncthreads();
    begin_products();
    if (threadIdx.x >= 32) multiply(sums);
    wait_products<0>();  // BUG
    out[threadIdx.x] = sums[0];
}
KERNEL warps_disagree(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();
    fence_shared();
    __syncthreads();
    begin_products();
    warpgroup_multiply_add<__nv_bfloat16, N>(sums, matrix_at(threadIdx.x / 32 * 16), matrix_at(64 * 32), true);  // BUG
    close_products();
    wait_products<0>();
    out[threadIdx.x] = sums[0];
}
// The same sums twice: what is done to them between two products comes before a fence.
KERNEL sums_changed_without_a_fence(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();
    fence_shared();
    __syncthreads();
    begin_products();
    multiply(sums);
    wait_products<0>();
    hold(sums);
    for (int i = 0; i < N / 2; i++) sums[i] *= __uint_as_float(in[i]);
    hold(sums);
    multiply(sums);  // BUG
    wait_products<0>();
    out[threadIdx.x] = sums[0];
}
KERNEL sums_read_before_the_wait(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();
    fence_shared();
    __syncthreads();
    begin_products();
    multiply(sums);
    out[threadIdx.x] = sums[3];  // BUG
    wait_products<0>();
}
KERNEL sums_changed_before_the_wait(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();
    fence_shared();
    __syncthreads();
    begin_products();
    multiply(sums);
    asm volatile("add.f32 %0, %0, 0f3F800000;" : "+f"(sums[5]));  // BUG
    wait_products<0>();
    out[threadIdx.x] = sums[5];
}
__device__ void multiply_registers(float (&sums)[4], unsigned (&a)[4]) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])
                 : "l"(matrix_at(64 * 32)));
    close_products();
}
KERNEL operand_changed_before_the_wait(ARGUMENTS) {
    float sums[4] = {};
    unsigned a[4] = {in[0], in[1], in[2], in[3]};
    fill();
    fence_shared();
    __syncthreads();
    begin_products();
    multiply_registers(sums, a);
    asm volatile("xor.b32 %0, %0, 1;" : "+r"(a[2]));  // BUG
    wait_products<0>();
    out[threadIdx.x] = __float_as_uint(sums[0]) + a[2];
}
KERNEL operand_made_without_a_fence(ARGUMENTS) {
    float sums[4] = {};
    unsigned a[4] = {in[0], in[1], in[2], in[3]};
    fill();
    fence_shared();
    __syncthreads();
    begin_products();
    asm volatile("xor.b32 %0, %0, 1;" : "+r"(a[2]));
    multiply_registers(sums, a);  // BUG
    wait_products<0>();
    out[threadIdx.x] = __float_as_uint(sums[0]);
}
// Nobody races: who overwrites the matrix is who waits, and only afterwards.
KERNEL matrix_changed_by_who_waits(ARGUMENTS) {
    float sums[N / 2] = {};
    fill();
    fence_shared();
    __syncthreads();
    begin_products();
    multiply(sums);  // BUG
    if (threadIdx.x == 0) words()[17] = in[0];
    __syncthreads();
    fence_shared();
    wait_products<0>();
    out[threadIdx.x] = sums[0];
}
