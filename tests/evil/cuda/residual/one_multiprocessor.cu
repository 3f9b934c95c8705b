#include "common/types.cuh"

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    unsigned here;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(here));
    if (here != 0) return;
    if (i < n) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}
