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
