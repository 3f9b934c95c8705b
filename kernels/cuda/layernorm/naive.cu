#include "common/types.cuh"

// out = (x - mean) * rstd * weight + bias; one thread a row. One thread's sum is long: in double, as on the CPU.
template <typename T>
__global__ void layernorm_forward(T* out, float* mean, float* rstd, const T* x, const T* weight, const T* bias,
                                  long long rows, int C, float eps) {
    long long r = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const T* row = x + r * C;
    double sum = 0, squares = 0;
    for (int c = 0; c < C; c++) sum += to_float(row[c]);
    double m = sum / C;
    for (int c = 0; c < C; c++) squares += (to_float(row[c]) - m) * (to_float(row[c]) - m);
    float s = rsqrtf(float(squares / C) + eps);
    for (int c = 0; c < C; c++) {
        float norm = float(to_float(row[c]) - m) * s;
        out[r * C + c] = from_float<T>(norm * to_float(weight[c]) + to_float(bias[c]));
    }
    mean[r] = float(m);
    rstd[r] = s;
}

// norm = (x - mean) * rstd, dnorm = dout * weight
// dx = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)) + dresidual, each mean over C; one thread a row
template <typename T>
__global__ void layernorm_backward_input(T* dx, const T* dout, const T* dresidual, const T* x, const T* weight,
                                         const float* mean, const float* rstd, long long rows, int C) {
    long long r = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (r >= rows) return;
    double sum = 0, product = 0;
    for (int c = 0; c < C; c++) {
        float norm = (to_float(x[r * C + c]) - mean[r]) * rstd[r];
        float dnorm = to_float(dout[r * C + c]) * to_float(weight[c]);
        sum += dnorm;
        product += dnorm * norm;
    }
    float dnorm_mean = float(sum / C), dnorm_norm_mean = float(product / C);
    for (int c = 0; c < C; c++) {
        float norm = (to_float(x[r * C + c]) - mean[r]) * rstd[r];
        float dnorm = to_float(dout[r * C + c]) * to_float(weight[c]);
        float value = rstd[r] * (dnorm - dnorm_mean - norm * dnorm_norm_mean);
        if (dresidual) value += to_float(dresidual[r * C + c]);
        dx[r * C + c] = from_float<T>(value);
    }
}

// dweight = sum of dout * norm, dbias = sum of dout, each over all rows; one thread a column
template <typename T>
__global__ void layernorm_backward_parameters(T* dweight, T* dbias, const T* dout, const T* x, const float* mean,
                                              const float* rstd, long long rows, int C, bool accumulate) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    double weight_sum = accumulate ? to_float(dweight[c]) : 0;
    double bias_sum = accumulate ? to_float(dbias[c]) : 0;
    for (long long r = 0; r < rows; r++) {
        float norm = (to_float(x[r * C + c]) - mean[r]) * rstd[r];
        weight_sum += to_float(dout[r * C + c]) * norm;
        bias_sum += to_float(dout[r * C + c]);
    }
    dweight[c] = from_float<T>(float(weight_sum));
    dbias[c] = from_float<T>(float(bias_sum));
}
