#include "common.hpp"

// sum = x + residual; residual_out is its rounding, out = sum * rstd * weight
EXPORT void residual_rmsnorm_forward(T* residual_out, T* out, float* rstd, const T* x, const T* residual,
                                     const T* weight, int64_t rows, int64_t C, float eps) {
    for (int64_t r = 0; r < rows; r++) {
        const T *a = x + r * C, *b = residual + r * C;
        double squares = 0;
        for (int64_t c = 0; c < C; c++) squares += std::pow(double(load(a + c) + load(b + c)), 2);
        double s = 1 / std::sqrt(squares / C + eps);
        for (int64_t c = 0; c < C; c++) {
            float sum = load(a + c) + load(b + c);
            store(residual_out + r * C + c, sum);
            store(out + r * C + c, float(sum * s * load(weight + c)));
        }
        rstd[r] = float(s);
    }
}
