#include "common.hpp"

#include <algorithm>

// Weights are read a line of 64 bytes at a time: sixteen floats, or sixteen pairs of bf16, which unfold to two vectors,
// the even ones and the odd ones. x is in that order beforehand.
constexpr int64_t HALVES = 4 / sizeof(T), STEP = HALVES * VEC;

INLINE uvec load_line(const T* p) {
    uvec line;
    memcpy(&line, p, sizeof line);
    return line;
}
// Of the first n elements; the others are zero.
INLINE uvec load_part_line(const T* p, int64_t n) {
    uvec line = {};
    memcpy(&line, p, n * sizeof(T));
    return line;
}
template <int HALF>
INLINE vec unfold(uvec line) {
    if (HALVES == 1) return (vec)line;
    return (vec)(HALF ? line & 0xffff0000 : line << 16);
}

// A row of x in fp32, in the order of weights: unfolded, its end padded with zeros.
static void unfold_row(float* to, const T* x, int64_t K) {
    for (int64_t k = 0; k < K; k += STEP) {
        const uvec line = load_part_line(x + k, std::min(STEP, K - k));
        store16(to + k, unfold<0>(line));
        if (HALVES == 2) store16(to + k + VEC, unfold<1>(line));
    }
}

// sum[r][m] += x[m] times row r of weight, as far as one line of it goes. x: of row 0, `stride` apart.
template <int M, int ROWS, int HALF>
INLINE void add_half(vec (&sum)[ROWS][M], const uvec (&line)[ROWS], const float* x, int64_t stride) {
    vec w[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) w[r] = unfold<HALF>(line[r]);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
        const vec row = load16(x + m * stride + HALF * VEC);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) sum[r][m] += w[r] * row;
    }
}

// out[m][0 .. ROWS) = x[m] times ROWS rows of weight, for M rows of x. The rows after these are asked for meanwhile: at
// M = 8 too few of a core's loads are in flight by themselves, as each has many instructions behind it.
template <int M, int ROWS>
static void multiply_rows(T* out, int64_t N, const float* x, int64_t stride, const T* weight, int64_t K) {
    vec sum[ROWS][M] = {};
    auto add = [&](int64_t k, auto load) __attribute__((always_inline)) {
        uvec line[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            line[r] = load(weight + r * K + k);
            prefetch(weight + (r + ROWS) * K + k);
        }
        add_half<M, ROWS, 0>(sum, line, x + k, stride);
        if (HALVES == 2) add_half<M, ROWS, 1>(sum, line, x + k, stride);
    };
    int64_t k = 0;
    for (; k + STEP <= K; k += STEP) add(k, [](const T* p) __attribute__((always_inline)) { return load_line(p); });
    if (k < K) add(k, [&](const T* p) __attribute__((always_inline)) { return load_part_line(p, K - k); });
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) store(out + m * N + r, hsum(sum[r][m]));
}

// What a thread takes at once: long stretches of memory, and enough of them that no thread waits long for another.
constexpr int64_t TASK_BYTES = 256 << 10;

template <int M>
static void multiply(T* out, const float* x, int64_t stride, const T* weight, int64_t N, int64_t K) {
    constexpr int ROWS = M <= 4 ? 4 : 3;  // M times as many sums and what meets in them fit the registers of AVX-512
    const int64_t task = std::max<int64_t>(1, TASK_BYTES / (K * int64_t(sizeof(T)) * ROWS)) * ROWS;
#pragma omp parallel for schedule(dynamic) if (N > task)
    for (int64_t first = 0; first < N; first += task) {
        int64_t n = first, end = std::min(N, first + task);
        for (; n + ROWS <= end; n += ROWS) multiply_rows<M, ROWS>(out + n, N, x, stride, weight + n * K, K);
        for (; n < end; n++) multiply_rows<M, 1>(out + n, N, x, stride, weight + n * K, K);
    }
}

// out[M, N] = x[M, K] weight[N, K]^T, for 1 <= M <= 8.
EXPORT void gemv_forward(T* out, const T* x_data, const T* weight, int64_t M, int64_t N, int64_t K, float* x) {
    const int64_t stride = (K + STEP - 1) / STEP * STEP;
    for (int64_t m = 0; m < M; m++) unfold_row(x + m * stride, x_data + m * K, K);
    switch (M) {
        case 1: return multiply<1>(out, x, stride, weight, N, K);
        case 2: return multiply<2>(out, x, stride, weight, N, K);
        case 3: return multiply<3>(out, x, stride, weight, N, K);
        case 4: return multiply<4>(out, x, stride, weight, N, K);
        case 5: return multiply<5>(out, x, stride, weight, N, K);
        case 6: return multiply<6>(out, x, stride, weight, N, K);
        case 7: return multiply<7>(out, x, stride, weight, N, K);
        case 8: return multiply<8>(out, x, stride, weight, N, K);
    }
}
