#include "common.hpp"

// sum = x + residual; residual_out is its rounding, out = (sum - mean) * rstd * weight + bias
EXPORT void residual_layernorm_forward(T* residual_out, T* out, float* mean, float* rstd, const T* x,
                                       const T* residual, const T* weight, const T* bias, int64_t rows, int64_t C,
                                       float eps) {
    for (int64_t r = 0; r < rows; r++) {
        const T *a = x + r * C, *b = residual + r * C;
        double total = 0, squares = 0;
        for (int64_t c = 0; c < C; c++) total += load(a + c) + load(b + c);
        double m = total / C;
        for (int64_t c = 0; c < C; c++) squares += std::pow(load(a + c) + load(b + c) - m, 2);
        double s = 1 / std::sqrt(squares / C + eps);
        for (int64_t c = 0; c < C; c++) {
            float sum = load(a + c) + load(b + c);
            store(residual_out + r * C + c, sum);
            store(out + r * C + c, float((sum - m) * s * load(weight + c) + load(bias + c)));
        }
        mean[r] = float(m);
        rstd[r] = float(s);
    }
}
