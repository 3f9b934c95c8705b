#include "common/types.cuh"

// residual_out = x + residual, out = (residual_out - mean) * rstd * weight + bias; one thread a row, sums in double.
// Backward is LayerNorm's: ../layernorm/naive.cu.
template <typename T>
__global__ void residual_layernorm_forward(T* residual_out, T* out, float* mean, float* rstd, const T* x,
                                           const T* residual, const T* weight, const T* bias, long long rows, int C,
                                           float eps) {
    long long r = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (r >= rows) return;
    auto added = [&](int c) { return to_float(x[r * C + c]) + to_float(residual[r * C + c]); };
    double sum = 0, squares = 0;
    for (int c = 0; c < C; c++) sum += added(c);
    double m = sum / C;
    for (int c = 0; c < C; c++) squares += (added(c) - m) * (added(c) - m);
    float s = rsqrtf(float(squares / C) + eps);
    for (int c = 0; c < C; c++) {
        float norm = float(added(c) - m) * s;
        residual_out[r * C + c] = from_float<T>(added(c));
        out[r * C + c] = from_float<T>(norm * to_float(weight[c]) + to_float(bias[c]));
    }
    mean[r] = float(m);
    rstd[r] = s;
}
