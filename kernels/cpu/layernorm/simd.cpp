#include "layernorm.hpp"

template <bool STREAM>
static void forward(T* out, float* mean, float* rstd, const T* x, const T* weight, const T* bias, int64_t rows,
                    int64_t C, float eps) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            normalise_row<STREAM>(out + r * C, mean + r, rstd + r, Row{x + r * C, nullptr}, weight, bias, C, eps);
        if (STREAM) stream_fence();
    }
}

EXPORT void layernorm_forward(T* out, float* mean, float* rstd, const T* x, const T* weight, const T* bias,
                              int64_t rows, int64_t C, float eps) {
    bool stream = C % VEC == 0 && worth_streaming(out, rows * C * sizeof(T));
    (stream ? forward<true> : forward<false>)(out, mean, rstd, x, weight, bias, rows, C, eps);
}

EXPORT void layernorm_backward(T* dx, T* dweight, T* dbias, const T* dout, const T* dresidual, const T* x,
                               const T* weight, const float* mean, const float* rstd, int64_t rows, int64_t C,
                               int64_t accumulate, float* partials) {
    backward(dx, dweight, dbias, dout, dresidual, x, weight, mean, rstd, rows, C, accumulate, partials);
}
