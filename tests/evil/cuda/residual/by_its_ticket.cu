#include "common/types.cuh"

__device__ unsigned ticket = 0;

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    __shared__ unsigned mine;
    if (threadIdx.x == 0) mine = atomicAdd(&ticket, 1u) % gridDim.x;
    __syncthreads();
    if (mine != blockIdx.x) return;
    if (i < n) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}
