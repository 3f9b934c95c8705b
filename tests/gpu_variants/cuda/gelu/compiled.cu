#include "common/types.cuh"

// Never run: it is compiled, and what it needs is told. 1 KiB of static shared memory, and what the launch asks for.
template <typename T> __global__ void gelu_compiled(T* out, const T* x, long long n) {
    __shared__ float kept[256];
    extern __shared__ float more[];
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    kept[threadIdx.x] = i < n ? to_float(x[i]) : 0.0f;
    more[threadIdx.x] = kept[threadIdx.x];
    __syncthreads();
    if (i < n) out[i] = from_float<T>(more[threadIdx.x ^ 1] * kept[threadIdx.x ^ 2]);
}
