#include "common/types.cuh"

__device__ unsigned begun = 0;

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (threadIdx.x == 0) {
        unsigned mine = atomicAdd(&begun, 1u), all = (mine / gridDim.x + 1) * gridDim.x;
        while (*(volatile unsigned*)&begun < all) {
        }
    }
    __syncthreads();
    if (i < n) out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}
