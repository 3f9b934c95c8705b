#include "layernorm.hpp"

// LayerNorm with and without a residual that is added first: residual_layernorm/simd.py takes its kernels from here.

constexpr int64_t QUICK = 2048;  // columns of a row whose fp32 sums are sharp enough in one piece
constexpr int64_t PIECE = 1024;  // columns of a longer one that are summed in fp32; the pieces are added in double

struct Sums {
    double first = 0, second = 0;
};

// f(i, n, a, b) adds what two sums want of a row's columns from i on.
template <class F>
INLINE Sums sums_of(int64_t C, F f) {
    Sums total;
    for (int64_t start = 0; start < C; start += PIECE) {
        vec a[CHAINS] = {}, b[CHAINS] = {};
        for_vectors(C - start < PIECE ? C - start : PIECE,
                    [&](int64_t i, int64_t n, int64_t k) { f(start + i, n, a[k], b[k]); });
        total.first += hsum(a);
        total.second += hsum(b);
    }
    return total;
}

// The value with its last 12 bits zero. x minus a float of all bits is rounded alike for all x of one binade, and the
// sum drifts; of these bits nearly every x is a multiple.
INLINE float coarse(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0xfffff000;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

// Of x - about.
INLINE Sums centred(Row row, int64_t C, float about) {
    return sums_of(C, [&](int64_t i, int64_t n, vec& sum, vec& squares) {
        vec deviation = select_part(n, row.at(i, n) - about, vec{});
        sum += deviation;
        squares += deviation * deviation;
    });
}

// One row whatever is in it. Where its mean is small beside its values, sums as they are lose nothing; else a second
// pass takes them about the mean.
template <bool STREAM>
INLINE void normalise_any_row(T* out, float* mean_out, float* rstd_out, Row row, const T* weight, const T* bias,
                              int64_t C, float eps) {
    float about = 0;
    Sums sums = centred(row, C, about);
    if (2 * sums.first * sums.first > sums.second * C) {
        about = coarse(sums.first / C);
        sums = centred(row, C, about);
    }
    double rest = sums.first / C;
    float mean = float(about + rest);
    float rstd = float(1 / std::sqrt(sums.second / C - rest * rest + eps));
    for_vectors(C, [&](int64_t i, int64_t n, int64_t) {
        vec norm = (row.at(i, n) - mean) * rstd;
        put_part<STREAM>(out + i, norm * load_part(weight + i, n) + load_part(bias + i, n), n);
    });
    *mean_out = mean;
    *rstd_out = rstd;
}

// normalise_row, which takes the first values' mean for near the row's. Where it was further off than half the row's
// standard deviation (or anything is NaN), digits were lost, and the row is done again.
template <bool STREAM>
INLINE void normalise(T* out, float* mean, float* rstd, Row row, const T* weight, const T* bias, int64_t C, float eps) {
    if (C <= QUICK) {
        normalise_row<STREAM>(out, mean, rstd, row, weight, bias, C, eps);
        int64_t some = C < CHAINS * VEC ? C : CHAINS * VEC;
        vec first = {};
        for_vectors(some, [&](int64_t i, int64_t n, int64_t) { first += row.at(i, n); });
        float off = (hsum(first) / some - *mean) * *rstd;
        if (off * off <= 0.25f) return;
    }
    normalise_any_row<STREAM>(out, mean, rstd, row, weight, bias, C, eps);
}

template <bool STREAM>
static void layernorm(T* out, float* mean, float* rstd, const T* x, const T* weight, const T* bias, int64_t rows,
                      int64_t C, float eps) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            normalise<STREAM>(out + r * C, mean + r, rstd + r, Row{x + r * C, nullptr}, weight, bias, C, eps);
        if (STREAM) stream_fence();
    }
}

EXPORT void layernorm_forward(T* out, float* mean, float* rstd, const T* x, const T* weight, const T* bias,
                              int64_t rows, int64_t C, float eps) {
    bool stream = C % VEC == 0 && worth_streaming(out, rows * C * sizeof(T));
    (stream ? layernorm<true> : layernorm<false>)(out, mean, rstd, x, weight, bias, rows, C, eps);
}

// residual_out = x + residual; out = layernorm of that sum. The sum is normalised as it is, not as residual_out rounds
// it: adding twice more, from L1, costs less than the digits.
template <bool STREAM>
static void residual_layernorm(T* residual_out, T* out, float* mean, float* rstd, const T* x, const T* residual,
                               const T* weight, const T* bias, int64_t rows, int64_t C, float eps) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            Row sum = {x + r * C, residual + r * C};
            normalise<STREAM>(out + r * C, mean + r, rstd + r, sum, weight, bias, C, eps);
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
    (stream ? residual_layernorm<true> : residual_layernorm<false>)(residual_out, out, mean, rstd, x, residual, weight,
                                                                    bias, rows, C, eps);
}

// Of both: addition passes its gradient on.
EXPORT void layernorm_backward(T* dx, T* dweight, T* dbias, const T* dout, const T* dresidual, const T* x,
                               const T* weight, const float* mean, const float* rstd, int64_t rows, int64_t C,
                               int64_t accumulate, float* partials) {
    backward(dx, dweight, dbias, dout, dresidual, x, weight, mean, rstd, rows, C, accumulate, partials);
}
