#include "common/types.cuh"

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    __shared__ float sums[25600];
    sums[threadIdx.x * 100] = i < n ? to_float(a[i]) : 0.0f;
    __syncthreads();
    if (i < n) out[i] = from_float<T>(sums[threadIdx.x * 100] + to_float(b[i]));
}
