#include "common/types.cuh"

// residual_out = x + residual, out = residual_out * rstd * weight; one thread a row, the sum of squares in double. What
// is normalised is the sum before it is rounded. Backward is RMSNorm's: ../rmsnorm/naive.cu.
template <typename T>
__global__ void residual_rmsnorm_forward(T* residual_out, T* out, float* rstd, const T* x, const T* residual,
                                         const T* weight, long long rows, int C, float eps) {
    long long r = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (r >= rows) return;
    auto added = [&](int c) { return to_float(x[r * C + c]) + to_float(residual[r * C + c]); };
    double squares = 0;
    for (int c = 0; c < C; c++) squares += double(added(c)) * added(c);
    float s = rsqrtf(float(squares / C) + eps);
    for (int c = 0; c < C; c++) {
        float sum = added(c);
        residual_out[r * C + c] = from_float<T>(sum);
        out[r * C + c] = from_float<T>(sum * s * to_float(weight[c]));
    }
    rstd[r] = s;
}
