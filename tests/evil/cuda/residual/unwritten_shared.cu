#include "common/types.cuh"

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    __shared__ float sums[512];
    sums[threadIdx.x] = i < n ? to_float(a[i]) + to_float(b[i]) : 0.0f;
    __syncthreads();
    if (i < n) out[i] = from_float<T>(sums[threadIdx.x] + 0.0f * sums[threadIdx.x + 1]);
}
