#include "softmax.hpp"

// Row r of S columns sees the first `visible` of them; the rest is written as zero and never read. So what is read is
// not one stream, and the hardware does not find the next row by itself: the pass that writes a row asks for it.
INLINE int64_t visible_columns(int64_t r, int64_t S, bool causal) { return causal ? r % S + 1 : S; }

constexpr int64_t PIECE = 4096;  // columns whose products are summed in fp32

template <bool STREAM>
static void forward(T* out, const T* x, int64_t R, int64_t S, bool causal) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            int64_t visible = visible_columns(r, S, causal);
            const T* row = x + r * S;
            RowSum found = online_row_sum(row, visible);
            float scale = 1 / found.sum;
            write_visible<STREAM>(out + r * S, visible, S, [&](int64_t i, int64_t n) {
                prefetch(row + S + i);
                return exp_below(load_part(row + i, n), splat(found.largest)) * scale;
            });
        }
        if (STREAM) stream_fence();
    }
}

EXPORT void softmax_forward(T* out, const T* x, int64_t R, int64_t S, int64_t causal) {
    bool stream = S % VEC == 0 && worth_streaming(out, R * S * sizeof(T));
    (stream ? forward<true> : forward<false>)(out, x, R, S, causal);
}

// dx = out * (dout - sum(dout * out))
template <bool STREAM>
static void backward(T* dx, const T* dout, const T* out, int64_t R, int64_t S, bool causal) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            int64_t visible = visible_columns(r, S, causal);
            const T *p = out + r * S, *dp = dout + r * S;
            double total = 0;  // of pieces: one chain of a long row's products would blur
            for (int64_t start = 0; start < visible; start += PIECE) {
                vec sum[CHAINS] = {};
                for_vectors(visible - start < PIECE ? visible - start : PIECE, [&](int64_t i, int64_t n, int64_t k) {
                    sum[k] += load_part(p + start + i, n) * load_part(dp + start + i, n);
                });
                total += hsum(sum);
            }
            float dot = float(total);
            write_visible<STREAM>(dx + r * S, visible, S, [&](int64_t i, int64_t n) {
                prefetch(p + S + i);
                prefetch(dp + S + i);
                return load_part(p + i, n) * (load_part(dp + i, n) - dot);
            });
        }
        if (STREAM) stream_fence();
    }
}

EXPORT void softmax_backward(T* dx, const T* dout, const T* out, int64_t R, int64_t S, int64_t causal) {
    bool stream = S % VEC == 0 && worth_streaming(dx, R * S * sizeof(T));
    (stream ? backward<true> : backward<false>)(dx, dout, out, R, S, causal);
}
