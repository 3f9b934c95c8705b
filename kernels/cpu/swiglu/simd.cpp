#include "common.hpp"

constexpr int64_t BLOCK = 4096;  // columns of a row that a thread takes at once: one row may be all there is

// s = sigmoid(g) and 1 - s, by e = exp(-|g|): one is 1 / (1 + e), the other e / (1 + e), and neither loses its digits
// where it is small. A NaN stays one.
struct Sigmoid {
    vec s, rest;
};
INLINE Sigmoid sigmoid16(vec g) {
    vec e = exp2_16((g > 0.0f ? -g : g) * LOG2E), large = reciprocal16(1.0f + e), small = e * large;
    return {g > 0.0f ? large : small, g > 0.0f ? small : large};
}

// f(row, i, n) for each vector of M rows of H columns: it begins at column i and has n lanes.
template <bool STREAM, class F>
INLINE void for_rows(int64_t M, int64_t H, F f) {
#pragma omp parallel
    {
#pragma omp for collapse(2) schedule(static)
        for (int64_t row = 0; row < M; row++)
            for (int64_t block = 0; block < H; block += BLOCK)
                for_vectors(H - block < BLOCK ? H - block : BLOCK,
                            [&](int64_t i, int64_t n, int64_t) { f(row, block + i, n); });
        if (STREAM) stream_fence();
    }
}

template <bool STREAM>
static void forward(T* out, const T* x, int64_t M, int64_t H) {
    for_rows<STREAM>(M, H, [=](int64_t row, int64_t i, int64_t n) {
        const T* gates = x + row * 2 * H;
        vec gate = load_part(gates + i, n);
        put_part<STREAM>(out + row * H + i, gate * sigmoid16(gate).s * load_part(gates + H + i, n), n);
    });
}

// silu' = s (1 + g (1 - s))
template <bool STREAM>
static void backward(T* dx, const T* dout, const T* x, int64_t M, int64_t H) {
    for_rows<STREAM>(M, H, [=](int64_t row, int64_t i, int64_t n) {
        const T* gates = x + row * 2 * H;
        T* dgates = dx + row * 2 * H;
        vec gate = load_part(gates + i, n), up = load_part(gates + H + i, n);
        vec gradient = load_part(dout + row * H + i, n);
        Sigmoid of = sigmoid16(gate);
        put_part<STREAM>(dgates + i, of.s * (1.0f + gate * of.rest) * up * gradient, n);
        put_part<STREAM>(dgates + H + i, gate * of.s * gradient, n);
    });
}

EXPORT void swiglu_forward(T* out, const T* x, int64_t M, int64_t H) {
    bool stream = H % VEC == 0 && worth_streaming(out, M * H * sizeof(T));
    (stream ? forward<true> : forward<false>)(out, x, M, H);
}

EXPORT void swiglu_backward(T* dx, const T* dout, const T* x, int64_t M, int64_t H) {
    bool stream = H % VEC == 0 && worth_streaming(dx, 2 * M * H * sizeof(T));
    (stream ? backward<true> : backward<false>)(dx, dout, x, M, H);
}
