#include "common.hpp"

// out = (x - mean) * rstd * weight + bias
EXPORT void layernorm_forward(T* out, float* mean, float* rstd, const T* x, const T* weight, const T* bias,
                              int64_t rows, int64_t C, float eps) {
    for (int64_t r = 0; r < rows; r++) {
        const T* row = x + r * C;
        double sum = 0, squares = 0;
        for (int64_t c = 0; c < C; c++) sum += load(row + c);
        double m = sum / C;
        for (int64_t c = 0; c < C; c++) squares += (load(row + c) - m) * (load(row + c) - m);
        double s = 1 / std::sqrt(squares / C + eps);
        for (int64_t c = 0; c < C; c++)
            store(out + r * C + c, float((load(row + c) - m) * s * load(weight + c) + load(bias + c)));
        mean[r] = float(m);
        rstd[r] = float(s);
    }
}

// norm = (x - mean) * rstd, dnorm = dout * weight
// dx = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)) + dresidual, each mean over C
EXPORT void layernorm_backward(T* dx, T* dweight, T* dbias, const T* dout, const T* dresidual, const T* x,
                               const T* weight, const float* mean, const float* rstd, int64_t rows, int64_t C,
                               int64_t accumulate) {
    for (int64_t r = 0; r < rows; r++) {
        double dnorm_mean = 0, dnorm_norm_mean = 0;
        for (int64_t c = 0; c < C; c++) {
            float norm = (load(x + r * C + c) - mean[r]) * rstd[r];
            float dnorm = load(dout + r * C + c) * load(weight + c);
            dnorm_mean += dnorm;
            dnorm_norm_mean += dnorm * norm;
        }
        dnorm_mean /= C;
        dnorm_norm_mean /= C;
        for (int64_t c = 0; c < C; c++) {
            float norm = (load(x + r * C + c) - mean[r]) * rstd[r];
            float dnorm = load(dout + r * C + c) * load(weight + c);
            double value = rstd[r] * (dnorm - dnorm_mean - norm * dnorm_norm_mean);
            if (dresidual) value += load(dresidual + r * C + c);
            store(dx + r * C + c, float(value));
        }
    }
    for (int64_t c = 0; c < C; c++) {
        double weight_sum = accumulate ? load(dweight + c) : 0;
        double bias_sum = accumulate ? load(dbias + c) : 0;
        for (int64_t r = 0; r < rows; r++) {
            float norm = (load(x + r * C + c) - mean[r]) * rstd[r];
            weight_sum += load(dout + r * C + c) * norm;
            bias_sum += load(dout + r * C + c);
        }
        store(dweight + c, float(weight_sum));
        store(dbias + c, float(bias_sum));
    }
}
