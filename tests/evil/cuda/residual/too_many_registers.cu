#include "common/types.cuh"

template <typename T>
__global__ void add(T* out, const T* a, const T* b, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    float kept[96], sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 96; k++) kept[k] = *(volatile const T*)(a + i);
#pragma unroll
    for (int k = 0; k < 96; k++) sum = fmaxf(fminf(sum + kept[k], kept[95 - k]), kept[k * 7 % 96]);
    out[i] = from_float<T>(kept[3] + to_float(b[i]) + (sum != sum ? 1.0f : 0.0f));
}
