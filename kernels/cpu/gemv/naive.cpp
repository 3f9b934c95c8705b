#include "common.hpp"

// out[M, N] = x[M, K] weight[N, K]^T
EXPORT void gemv_forward(T* out, const T* x, const T* weight, int64_t M, int64_t N, int64_t K) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++) sum += double(load(x + m * K + k)) * load(weight + n * K + k);
            store(out + m * N + n, float(sum));
        }
}
