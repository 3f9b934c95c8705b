#include "common/types.cuh"

// out = x weight^T. One thread an element of out. Its sum is made of chains of sqrt(K) terms, as in matmul/naive.cu.
template <typename T>
__global__ void gemv_forward(T* out, const T* x, const T* weight, int M, int N, int K) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= (long long)M * N) return;
    const T* x_row = x + i / N * K;
    const T* weight_row = weight + i % N * K;
    int chain = int(ceilf(sqrtf(K)));
    float total = 0;
    for (int start = 0; start < K; start += chain) {
        float part = 0;
        for (int k = start; k < min(start + chain, K); k++) part += to_float(x_row[k]) * to_float(weight_row[k]);
        total += part;
    }
    out[i] = from_float<T>(total);
}
