#include "common.hpp"

#include <algorithm>

// STEP elements of a row in one register, and sum + a * b of them. vdpbf16ps takes two bf16 a lane.
#if defined(T_BF16) && defined(__AVX512BF16__)
constexpr int64_t STEP = 2 * VEC;
using operand = __m512bh;
INLINE operand load_step(const T* p) {
    operand v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE operand load_end(const T* p, int64_t n) {
    return (operand)_mm512_maskz_loadu_epi16(__mmask32((1ull << n) - 1), p);
}
INLINE vec multiply_add(vec sum, operand a, operand b) { return (vec)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
constexpr int64_t STEP = VEC;
using operand = vec;
INLINE operand load_step(const T* p) { return load16(p); }
INLINE operand load_end(const T* p, int64_t n) { return load_part(p, n); }
INLINE vec multiply_add(vec sum, operand a, operand b) { return sum + a * b; }
#endif

// out[m][0 .. ROWS) = x[m] times ROWS rows of weight, for M rows of x.
template <int M, int ROWS>
static void multiply_rows(T* out, int64_t N, const T* x, const T* weight, int64_t K) {
    vec sum[ROWS][M] = {};
    auto add = [&](int64_t k, auto load) __attribute__((always_inline)) {
        operand w[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) w[r] = load(weight + r * K + k);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            operand row = load(x + m * K + k);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) sum[r][m] = multiply_add(sum[r][m], w[r], row);
        }
    };
    int64_t k = 0;
    for (; k + STEP <= K; k += STEP) add(k, [](const T* p) __attribute__((always_inline)) { return load_step(p); });
    if (k < K) add(k, [&](const T* p) __attribute__((always_inline)) { return load_end(p, K - k); });
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) store(out + m * N + r, hsum(sum[r][m]));
}

// What a thread takes at once: long stretches of memory, and enough of them that no thread waits for another.
constexpr int64_t TASK_BYTES = 64 << 10;

template <int M>
static void multiply(T* out, const T* x, const T* weight, int64_t N, int64_t K) {
    constexpr int ROWS = M <= 4 ? 4 : 2;  // with M up to 16 sums: registers for those, and hidden latencies
    const int64_t task = std::max<int64_t>(1, TASK_BYTES / (K * int64_t(sizeof(T)) * ROWS)) * ROWS;
#pragma omp parallel for schedule(dynamic) if (N > task)
    for (int64_t first = 0; first < N; first += task) {
        int64_t n = first, end = std::min(N, first + task);
        for (; n + ROWS <= end; n += ROWS) multiply_rows<M, ROWS>(out + n, N, x, weight + n * K, K);
        for (; n < end; n++) multiply_rows<M, 1>(out + n, N, x, weight + n * K, K);
    }
}

// out[M, N] = x[M, K] weight[N, K]^T, for 1 <= M <= 8.
EXPORT void gemv_forward(T* out, const T* x, const T* weight, int64_t M, int64_t N, int64_t K) {
    switch (M) {
        case 1: return multiply<1>(out, x, weight, N, K);
        case 2: return multiply<2>(out, x, weight, N, K);
        case 3: return multiply<3>(out, x, weight, N, K);
        case 4: return multiply<4>(out, x, weight, N, K);
        case 5: return multiply<5>(out, x, weight, N, K);
        case 6: return multiply<6>(out, x, weight, N, K);
        case 7: return multiply<7>(out, x, weight, N, K);
        case 8: return multiply<8>(out, x, weight, N, K);
    }
}
