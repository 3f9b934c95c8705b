// Reductions over a warp or a block. Every thread of it takes part, and every thread gets the result, bitwise the same.
// The order of the additions is fixed, so that the same numbers give the same sum every time.
#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffff;
#define MINUS_INFINITY __int_as_float(0xff800000)  // NVRTC has no <cmath>

__device__ inline int lane_id() { return threadIdx.x % WARP; }  // where blockDim.x is a multiple of WARP
__device__ inline int warp_id() { return threadIdx.x / WARP; }

struct Sum {
    __device__ static float neutral() { return 0; }
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
    __device__ static float neutral() { return MINUS_INFINITY; }
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// `combine` is commutative: then the two lanes of each exchange compute the same bits.
template <typename Combine>
__device__ float warp_reduce(float value, Combine combine) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = combine(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// Blocks of one dimension and THREADS threads, a multiple of WARP. The barrier at the end lets the next call, and the
// caller, use shared memory again at once.
template <int THREADS, typename Combine>
__device__ float block_reduce(float value, Combine combine) {
    constexpr int WARPS = THREADS / WARP;
    static_assert(THREADS % WARP == 0 && WARPS <= WARP, "a block is 1 to 32 whole warps");
    value = warp_reduce(value, combine);
    if constexpr (WARPS > 1) {
        __shared__ float parts[WARPS];
        if (lane_id() == 0) parts[warp_id()] = value;
        __syncthreads();
        value = warp_reduce(lane_id() < WARPS ? parts[lane_id()] : Combine::neutral(), combine);
        __syncthreads();
    }
    return value;
}

__device__ inline float warp_sum(float value) { return warp_reduce(value, Sum{}); }
__device__ inline float warp_max(float value) { return warp_reduce(value, Max{}); }

template <int THREADS>
__device__ float block_sum(float value) {
    return block_reduce<THREADS>(value, Sum{});
}
template <int THREADS>
__device__ float block_max(float value) {
    return block_reduce<THREADS>(value, Max{});
}
