#include "common/types.cuh"

// out = x * rstd * weight, rstd = (mean(x^2) + eps)^-1/2; one thread a row. One thread's sum is long: in double, as on
// the CPU.
template <typename T>
__global__ void rmsnorm_forward(T* out, float* rstd, const T* x, const T* weight, long long rows, int C, float eps) {
    long long r = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const T* row = x + r * C;
    double squares = 0;
    for (int c = 0; c < C; c++) squares += double(to_float(row[c])) * to_float(row[c]);
    float s = rsqrtf(float(squares / C) + eps);
    for (int c = 0; c < C; c++) out[r * C + c] = from_float<T>(to_float(row[c]) * s * to_float(weight[c]));
    rstd[r] = s;
}

// norm = x * rstd, dnorm = dout * weight
// dx = rstd * (dnorm - norm * mean(dnorm * norm)) + dresidual, the mean over C; one thread a row
template <typename T>
__global__ void rmsnorm_backward_input(T* dx, const T* dout, const T* dresidual, const T* x, const T* weight,
                                       const float* rstd, long long rows, int C) {
    long long r = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (r >= rows) return;
    double product = 0;
    for (int c = 0; c < C; c++) {
        float norm = to_float(x[r * C + c]) * rstd[r];
        product += to_float(dout[r * C + c]) * to_float(weight[c]) * norm;
    }
    float mean = float(product / C);
    for (int c = 0; c < C; c++) {
        float norm = to_float(x[r * C + c]) * rstd[r];
        float value = rstd[r] * (to_float(dout[r * C + c]) * to_float(weight[c]) - norm * mean);
        if (dresidual) value += to_float(dresidual[r * C + c]);
        dx[r * C + c] = from_float<T>(value);
    }
}

// dweight = sum of dout * norm over all rows; one thread a column
template <typename T>
__global__ void rmsnorm_backward_weight(T* dweight, const T* dout, const T* x, const float* rstd, long long rows, int C,
                                        bool accumulate) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    double sum = accumulate ? to_float(dweight[c]) : 0;
    for (long long r = 0; r < rows; r++) sum += to_float(dout[r * C + c]) * (to_float(x[r * C + c]) * rstd[r]);
    dweight[c] = from_float<T>(float(sum));
}
