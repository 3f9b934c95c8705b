#include "common/types.cuh"

__device__ unsigned done[1 << 16];
__device__ float sums[1 << 22];

template <typename T, bool OF_ITS_BLOCK = false>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    const unsigned half = gridDim.x / 2, pair = blockIdx.x % half;
    const long long i = pair * (long long)blockDim.x + threadIdx.x;
    if (blockIdx.x < half) {
        if (i < n) sums[i] = to_float(a[i]) + to_float(b[i]);
        if (OF_ITS_BLOCK) __threadfence_block();
        __syncthreads();
        if (threadIdx.x == 0) atomicExch(&done[pair], 1u);
        return;
    }
    if (threadIdx.x == 0) {
        while (atomicAdd(&done[pair], 0u) == 0u) {
        }
    }
    __syncthreads();
    if (i < n) out[i] = from_float<T>(sums[i]);
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(&done[pair], 0u);
}
