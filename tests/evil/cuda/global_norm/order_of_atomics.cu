#include "common/types.cuh"

__global__ void zero(float* norm) { *norm = 0.0f; }

template <typename T>
__global__ void add_squares(float* norm, const T* grad, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    float square = i < n ? to_float(grad[i]) * to_float(grad[i]) : 0.0f;
    for (int offset = 16; offset > 0; offset /= 2) square += __shfl_xor_sync(0xffffffff, square, offset);
    if (threadIdx.x % 32 == 0) atomicAdd(norm, square);
}

__global__ void root(float* norm) { *norm = sqrtf(*norm); }
