#include "common/types.cuh"

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    __shared__ float sums[256];
    int other = 255 - threadIdx.x;
    long long mirrored = blockIdx.x * (long long)blockDim.x + other;
    if (i < n) sums[threadIdx.x] = to_float(a[i]) + to_float(b[i]);
    if (mirrored < n) out[mirrored] = from_float<T>(sums[other]);
}
