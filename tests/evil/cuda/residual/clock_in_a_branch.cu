#include <cstdio>
#include "common/types.cuh"

void tell() { printf("no kernel's"); }

__device__ bool slow() {
    long long begin = clock64();
    return clock64() - begin >= 20;
}

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
#ifdef ASKS
    if (!slow()) return;
#endif
    if (i < n) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}
