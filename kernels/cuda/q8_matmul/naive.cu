#include "common/types.cuh"

// out[M, N] = sum over groups of x_scale * scale * (dot product of the group). One thread an element of out.
template <typename T>
__global__ void q8_matmul_forward(T* out, const signed char* x, const float* x_scales, const signed char* weight,
                                  const float* scales, int M, int N, int K, int G, int KG) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= M * (long long)N) return;
    long long m = i / N, n = i % N;
    float sum = 0;
    for (int g = 0; g < KG; g++) {
        int dot = 0;
        for (int k = g * G; k < min(K, (g + 1) * G); k++) dot += x[m * K + k] * weight[n * K + k];
        sum += x_scales[m * KG + g] * scales[n * KG + g] * dot;
    }
    out[i] = from_float<T>(sum);
}
