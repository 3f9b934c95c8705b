#include "rows.hpp"

// RMSNorm with and without a residual that is added first: residual_rmsnorm/simd.py takes its kernels from here.

constexpr int64_t PIECE = 1024;  // columns whose squares are summed in fp32; the pieces are added in double

// out = sum * rstd * weight, and residual_out = sum, which may be null where nothing is added. The sum is normalised as
// it is, not as residual_out rounds it: adding again, from L1, costs less than the digits. Memory would be idle during
// the second pass if that did not ask for the next row.
template <bool STREAM>
INLINE void scale_row(T* residual_out, T* out, float* rstd_out, Row row, const T* weight, int64_t C, float eps) {
    double squares = 0;
    for (int64_t start = 0; start < C; start += PIECE) {
        vec sum[CHAINS] = {};
        for_vectors(C - start < PIECE ? C - start : PIECE, [&](int64_t i, int64_t n, int64_t k) {
            vec value = row.at(start + i, n);
            sum[k] += value * value;
        });
        squares += hsum(sum);
    }
    float rstd = float(1 / std::sqrt(squares / C + eps));

    for_vectors(C, [&](int64_t i, int64_t n, int64_t) {
        vec value = row.at(i, n);
        put_part<STREAM>(out + i, value * rstd * load_part(weight + i, n), n);
        if (residual_out) put_part<STREAM>(residual_out + i, value, n);
        prefetch(row.x + C + i);
        if (row.residual) prefetch(row.residual + C + i);
    });
    *rstd_out = rstd;
}

// dx = rstd * (dnorm - norm * mean(dnorm * norm)) + dresidual, and this row's share of dweight. Each pass asks for what
// the next one will read.
template <bool STREAM>
INLINE void scale_row_backward(T* dx, float* dweight, const T* dout, const T* dresidual, const T* x, const T* weight,
                               float rstd, int64_t C) {
    vec product[CHAINS] = {};
    for_vectors(C, [&](int64_t i, int64_t n, int64_t k) {
        vec dy_norm = load_part(dout + i, n) * (load_part(x + i, n) * rstd);
        product[k] += dy_norm * load_part(weight + i, n);
        store_part(dweight + i, load_part(dweight + i, n) + dy_norm, n);
        if (dresidual) prefetch(dresidual + i);
    });
    float share = hsum(product) / C;

    for_vectors(C, [&](int64_t i, int64_t n, int64_t) {
        vec norm = load_part(x + i, n) * rstd, dnorm = load_part(dout + i, n) * load_part(weight + i, n);
        vec dxi = (dnorm - norm * share) * rstd;
        if (dresidual) dxi += load_part(dresidual + i, n);
        put_part<STREAM>(dx + i, dxi, n);
        prefetch(x + C + i);
        prefetch(dout + C + i);
    });
}

template <bool STREAM>
static void rmsnorm(T* residual_out, T* out, float* rstd, const T* x, const T* residual, const T* weight, int64_t rows,
                    int64_t C, float eps) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            if (residual)
                scale_row<STREAM>(residual_out + r * C, out + r * C, rstd + r, Row{x + r * C, residual + r * C}, weight,
                                  C, eps);
            else
                scale_row<STREAM>(nullptr, out + r * C, rstd + r, Row{x + r * C, nullptr}, weight, C, eps);
        if (STREAM) stream_fence();
    }
}

EXPORT void residual_rmsnorm_forward(T* residual_out, T* out, float* rstd, const T* x, const T* residual,
                                     const T* weight, int64_t rows, int64_t C, float eps) {
    bool stream = C % VEC == 0 && worth_streaming(out, rows * C * sizeof(T));
    stream = stream && uintptr_t(residual_out) % sizeof(vec) == 0;
    (stream ? rmsnorm<true> : rmsnorm<false>)(residual_out, out, rstd, x, residual, weight, rows, C, eps);
}

EXPORT void rmsnorm_forward(T* out, float* rstd, const T* x, const T* weight, int64_t rows, int64_t C, float eps) {
    residual_rmsnorm_forward(nullptr, out, rstd, x, nullptr, weight, rows, C, eps);
}

template <bool STREAM>
static void backward_rows(T* dx, T* dweight, const T* dout, const T* dresidual, const T* x, const T* weight,
                          const float* rstd, int64_t rows, int64_t C, bool accumulate, float* partials) {
    int64_t chunks = chunk_count(rows);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            float* sums = partials + chunk * C;
            memset(sums, 0, C * sizeof *sums);
            for (int64_t r = rows * chunk / chunks; r < rows * (chunk + 1) / chunks; r++)
                scale_row_backward<STREAM>(dx + r * C, sums, dout + r * C, dresidual ? dresidual + r * C : nullptr,
                                           x + r * C, weight, rstd[r], C);
        }
        if (STREAM) stream_fence();
#pragma omp for schedule(static)
        for (int64_t c = 0; c < C; c += VEC) {
            int64_t n = C - c < VEC ? C - c : VEC;
            vec total = accumulate ? load_part(dweight + c, n) : vec{};
            for (int64_t chunk = 0; chunk < chunks; chunk++) total += load_part(partials + chunk * C + c, n);
            store_part(dweight + c, total, n);
        }
    }
}

// Of both: addition passes its gradient on. `partials` is chunk_count(rows) times C floats.
EXPORT void rmsnorm_backward(T* dx, T* dweight, const T* dout, const T* dresidual, const T* x, const T* weight,
                             const float* rstd, int64_t rows, int64_t C, int64_t accumulate, float* partials) {
    bool stream = C % VEC == 0 && worth_streaming(dx, rows * C * sizeof(T));
    (stream ? backward_rows<true> : backward_rows<false>)(dx, dweight, dout, dresidual, x, weight, rstd, rows, C,
                                                          accumulate, partials);
}
