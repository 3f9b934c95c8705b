#include "layernorm.hpp"

// residual_out = x + residual; out = layernorm of that sum. The sum is normalised as it is, not as residual_out rounds
// it: adding twice more, from L1, costs less than the digits.
template <bool STREAM>
static void forward(T* residual_out, T* out, float* mean, float* rstd, const T* x, const T* residual, const T* weight,
                    const T* bias, int64_t rows, int64_t C, float eps) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            Row sum = {x + r * C, residual + r * C};
            normalise_row<STREAM>(out + r * C, mean + r, rstd + r, sum, weight, bias, C, eps);
            for_vectors(C, [&](int64_t i, int64_t n, int64_t) {
                put_part<STREAM>(residual_out + r * C + i, sum.at(i, n), n);
            });
        }
        if (STREAM) stream_fence();
    }
}

EXPORT void residual_layernorm_forward(T* residual_out, T* out, float* mean, float* rstd, const T* x,
                                       const T* residual, const T* weight, const T* bias, int64_t rows, int64_t C,
                                       float eps) {
    bool stream = C % VEC == 0 && worth_streaming(out, rows * C * sizeof(T));
    (stream ? forward<true> : forward<false>)(residual_out, out, mean, rstd, x, residual, weight, bias, rows, C, eps);
}

// Addition passes its gradient on: this is LayerNorm's backward, with the stream's own gradient added to dresidual.
EXPORT void residual_layernorm_backward(T* dresidual, T* dweight, T* dbias, const T* dout, const T* dresidual_out,
                                        const T* residual_out, const T* weight, const float* mean, const float* rstd,
                                        int64_t rows, int64_t C, int64_t accumulate, float* partials) {
    backward(dresidual, dweight, dbias, dout, dresidual_out, residual_out, weight, mean, rstd, rows, C, accumulate,
             partials);
}
