#include "common.hpp"

// out[M, N] = sum over groups of x_scale * scale * (whole-number dot product of the group)
EXPORT void q8_matmul_forward(T* out, const int8_t* x, const float* x_scales, const int8_t* weight,
                              const float* scales, int64_t M, int64_t N, int64_t K, int64_t G) {
    const int64_t KG = (K + G - 1) / G;
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double sum = 0;
            for (int64_t g = 0; g < KG; g++) {
                int64_t dot = 0;
                for (int64_t k = g * G; k < (g + 1) * G && k < K; k++) dot += x[m * K + k] * weight[n * K + k];
                sum += double(x_scales[m * KG + g]) * scales[n * KG + g] * double(dot);
            }
            store(out + m * N + n, float(sum));
        }
}
