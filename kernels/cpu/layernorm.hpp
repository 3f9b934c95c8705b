// LayerNorm rows in SIMD: what layernorm/simd.cpp and residual_layernorm/simd.cpp have in common.
#pragma once

#include "rows.hpp"

// One row. Both moments come from one pass over x - about, where `about` is the mean of the first 64 values: near
// enough to the row's mean that subtracting a square from a mean of squares cancels nothing, and a constant row comes
// out as exactly 0. Memory would be idle during the second pass if that did not ask for the next row.
template <bool STREAM>
INLINE void normalise_row(T* out, float* mean_out, float* rstd_out, Row row, const T* weight, const T* bias, int64_t C,
                          float eps) {
    vec first[CHAINS] = {}, sum[CHAINS] = {}, squares[CHAINS] = {};
    int64_t some = C < CHAINS * VEC ? C : CHAINS * VEC;
    for_vectors(some, [&](int64_t i, int64_t n, int64_t k) { first[k] += row.at(i, n); });
    float about = hsum(first) / some;
    for_vectors(C, [&](int64_t i, int64_t n, int64_t k) {
        vec centred = select_part(n, row.at(i, n) - about, vec{});
        sum[k] += centred;
        squares[k] += centred * centred;
    });
    double centred_mean = double(hsum(sum)) / C;
    float mean = float(about + centred_mean);
    float rstd = float(1 / std::sqrt(double(hsum(squares)) / C - centred_mean * centred_mean + eps));

    for_vectors(C, [&](int64_t i, int64_t n, int64_t) {
        vec norm = (row.at(i, n) - mean) * rstd;
        put_part<STREAM>(out + i, norm * load_part(weight + i, n) + load_part(bias + i, n), n);
        prefetch(row.x + C + i);
        if (row.residual) prefetch(row.residual + C + i);
    });
    *mean_out = mean;
    *rstd_out = rstd;
}

// dx = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)) + dresidual, and this row's share of dweight and dbias.
// Each pass asks for what the next one will read.
template <bool STREAM>
INLINE void backward_row(T* dx, float* dweight, float* dbias, const T* dout, const T* dresidual, const T* x,
                         const T* weight, float mean, float rstd, int64_t C) {
    vec sum[CHAINS] = {}, product[CHAINS] = {};
    for_vectors(C, [&](int64_t i, int64_t n, int64_t k) {
        vec norm = (load_part(x + i, n) - mean) * rstd;
        vec dy = load_part(dout + i, n), dnorm = dy * load_part(weight + i, n);
        sum[k] += dnorm;
        product[k] += dnorm * norm;
        store_part(dweight + i, load_part(dweight + i, n) + dy * norm, n);
        store_part(dbias + i, load_part(dbias + i, n) + dy, n);
        if (dresidual) prefetch(dresidual + i);
    });
    float dnorm_mean = hsum(sum) / C, dnorm_norm_mean = hsum(product) / C;

    for_vectors(C, [&](int64_t i, int64_t n, int64_t) {
        vec norm = (load_part(x + i, n) - mean) * rstd;
        vec dnorm = load_part(dout + i, n) * load_part(weight + i, n);
        vec dxi = (dnorm - dnorm_mean - norm * dnorm_norm_mean) * rstd;
        if (dresidual) dxi += load_part(dresidual + i, n);
        put_part<STREAM>(dx + i, dxi, n);
        prefetch(x + C + i);
        prefetch(dout + C + i);
    });
}

// `partials` is chunk_count(rows) times (dweight, dbias), 2 C floats a chunk.
template <bool STREAM>
void backward_rows(T* dx, T* dweight, T* dbias, const T* dout, const T* dresidual, const T* x, const T* weight,
                   const float* mean, const float* rstd, int64_t rows, int64_t C, bool accumulate, float* partials) {
    int64_t chunks = chunk_count(rows);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            float* sums = partials + chunk * 2 * C;
            memset(sums, 0, 2 * C * sizeof *sums);
            for (int64_t r = rows * chunk / chunks; r < rows * (chunk + 1) / chunks; r++)
                backward_row<STREAM>(dx + r * C, sums, sums + C, dout + r * C,
                                     dresidual ? dresidual + r * C : nullptr, x + r * C, weight, mean[r], rstd[r], C);
        }
        if (STREAM) stream_fence();
#pragma omp for schedule(static)
        for (int64_t block = 0; block < 2 * C; block += VEC) {  // dweight and dbias lie behind one another
            int64_t n = 2 * C - block < VEC ? 2 * C - block : VEC;
            vec total = {};
            for (int64_t chunk = 0; chunk < chunks; chunk++) total += load_part(partials + chunk * 2 * C + block, n);
            for (int64_t j = 0; j < n; j++) {
                int64_t c = block + j;
                T* gradient = c < C ? dweight + c : dbias + c - C;
                store(gradient, accumulate ? load(gradient) + total[j] : total[j]);
            }
        }
    }
}

INLINE void backward(T* dx, T* dweight, T* dbias, const T* dout, const T* dresidual, const T* x, const T* weight,
                     const float* mean, const float* rstd, int64_t rows, int64_t C, bool accumulate, float* partials) {
    bool stream = C % VEC == 0 && worth_streaming(dx, rows * C * sizeof(T));
    (stream ? backward_rows<true> : backward_rows<false>)(dx, dweight, dbias, dout, dresidual, x, weight, mean, rstd,
                                                          rows, C, accumulate, partials);
}
