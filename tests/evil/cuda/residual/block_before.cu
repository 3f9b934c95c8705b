#include "common/types.cuh"

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const float before = i >= 256 && i < n ? to_float(out[i - 256]) : 0.0f;
    if (i < n) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]) + 0.0f * before);
}
