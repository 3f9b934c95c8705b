#include "common/types.cuh"

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    if (threadIdx.x < n) out[threadIdx.x] = from_float<T>(to_float(a[threadIdx.x]) + to_float(b[threadIdx.x]));
}
