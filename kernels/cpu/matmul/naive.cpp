#include "common.hpp"

constexpr double SCALE = 0.7978845608028654, CUBIC = 0.044715;  // sqrt(2 / pi)

static double gelu(double x) { return 0.5 * x * (1 + std::tanh(SCALE * (x + CUBIC * x * x * x))); }

static double gelu_grad(double x) {
    double t = std::tanh(SCALE * (x + CUBIC * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * SCALE * (1 + 3 * CUBIC * x * x);
}

// out[M, N] = x[M, K] weight[N, K]^T (+ bias), through GELU where pre_gelu is wanted
EXPORT void matmul_forward(T* out, T* pre_gelu, const T* x, const T* weight, const T* bias, int64_t M, int64_t N,
                           int64_t K) {
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) {
            double sum = bias ? load(bias + j) : 0;
            for (int64_t k = 0; k < K; k++) sum += double(load(x + i * K + k)) * load(weight + j * K + k);
            if (pre_gelu) {
                store(pre_gelu + i * N + j, float(sum));
                sum = gelu(sum);
            }
            store(out + i * N + j, float(sum));
        }
}

EXPORT void matmul_backward(T* dx, T* dweight, T* dbias, const T* dout, const T* x, const T* weight,
                            const T* x_pre_gelu, int64_t M, int64_t N, int64_t K, int64_t accumulate) {
    // dx = dout weight, times gelu'(x_pre_gelu) where x was gelu(x_pre_gelu)
    for (int64_t i = 0; i < M; i++)
        for (int64_t k = 0; k < K; k++) {
            double sum = 0;
            for (int64_t j = 0; j < N; j++) sum += double(load(dout + i * N + j)) * load(weight + j * K + k);
            if (x_pre_gelu) sum *= gelu_grad(load(x_pre_gelu + i * K + k));
            store(dx + i * K + k, float(sum));
        }
    // dweight = dout^T x
    for (int64_t j = 0; j < N; j++)
        for (int64_t k = 0; k < K; k++) {
            double sum = accumulate ? load(dweight + j * K + k) : 0;
            for (int64_t i = 0; i < M; i++) sum += double(load(dout + i * N + j)) * load(x + i * K + k);
            store(dweight + j * K + k, float(sum));
        }
    // dbias = sum of dout over the rows
    if (!dbias) return;
    for (int64_t j = 0; j < N; j++) {
        double sum = accumulate ? load(dbias + j) : 0;
        for (int64_t i = 0; i < M; i++) sum += load(dout + i * N + j);
        store(dbias + j, float(sum));
    }
}
