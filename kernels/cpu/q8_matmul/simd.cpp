#include "common.hpp"

#if defined(__AVX2__) && !defined(__AVX512F__)
#include <immintrin.h>
#endif

// ---- the dot product of up to 64 bytes, in sixteen sums -------------------------------------------------------------

// With VNNI one instruction multiplies 64 bytes and adds them by fours, but takes one side for unsigned. So a weight is
// read with 128 added to it (its sign bit turned), and each sum begins at -128 times that of the x it meets (`offsets`).
// Without VNNI bytes become 16 bits first, whose products are added in pairs; 127 * 127 * 2 fits 32 bits by far.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr bool OFFSET = true;
constexpr int64_t BYTES = 64;
struct Bytes {
    __m512i at;
};
INLINE Bytes bytes_of(const int8_t* p, int64_t n) {
    if (n == BYTES) return {_mm512_loadu_si512(p)};
    return {_mm512_maskz_loadu_epi8((__mmask64(1) << n) - 1, p)};
}
INLINE Bytes raised(Bytes weight) { return {_mm512_xor_si512(weight.at, _mm512_set1_epi8(-128))}; }
INLINE ivec dot_add(ivec sums, Bytes weight, Bytes x) {
    return (ivec)_mm512_dpbusd_epi32((__m512i)sums, weight.at, x.at);
}
INLINE ivec offset_of(Bytes x) {
    return -(ivec)_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(-128), x.at);
}
#elif defined(__AVX512BW__)
constexpr bool OFFSET = false;
constexpr int64_t BYTES = 32;
struct Bytes {
    __m512i at;
};
INLINE Bytes bytes_of(const int8_t* p, int64_t n) {
    __m256i narrow = {};
    if (n == BYTES)
        narrow = _mm256_loadu_si256((const __m256i*)p);
    else
        memcpy(&narrow, p, n);
    return {_mm512_cvtepi8_epi16(narrow)};
}
INLINE Bytes raised(Bytes weight) { return weight; }
INLINE ivec dot_add(ivec sums, Bytes weight, Bytes x) { return sums + (ivec)_mm512_madd_epi16(weight.at, x.at); }
#elif defined(__AVX2__)
constexpr bool OFFSET = false;
constexpr int64_t BYTES = 32;
struct Bytes {
    __m256i low, high;
};
INLINE Bytes bytes_of(const int8_t* p, int64_t n) {
    __m128i halves[2] = {};
    if (n == BYTES)
        memcpy(halves, p, BYTES);
    else
        memcpy(halves, p, n);
    return {_mm256_cvtepi8_epi16(halves[0]), _mm256_cvtepi8_epi16(halves[1])};
}
INLINE Bytes raised(Bytes weight) { return weight; }
INLINE ivec dot_add(ivec sums, Bytes weight, Bytes x) {
    __m256i products[2] = {_mm256_madd_epi16(weight.low, x.low), _mm256_madd_epi16(weight.high, x.high)};
    ivec both;
    memcpy(&both, products, sizeof both);
    return sums + both;
}
#else
constexpr bool OFFSET = false;
constexpr int64_t BYTES = 16;
struct Bytes {
    ivec at;
};
INLINE Bytes bytes_of(const int8_t* p, int64_t n) {
    typedef int8_t bvec __attribute__((vector_size(16)));
    bvec narrow = {};
    if (n == BYTES)
        memcpy(&narrow, p, BYTES);
    else
        memcpy(&narrow, p, n);
    return {__builtin_convertvector(narrow, ivec)};
}
INLINE Bytes raised(Bytes weight) { return weight; }
INLINE ivec dot_add(ivec sums, Bytes weight, Bytes x) { return sums + weight.at * x.at; }
#endif

// ---- a tile of ROWS of x against COLUMNS rows of weight ----------------------------------------------------------------

struct Operands {
    const int8_t *x, *weight;
    const float *x_scales, *scales;
    const ivec* offsets;
    int64_t K, G, KG;
};

// The sixteen lanes of each sum are added up once, at the end of a row: within a group they are whole numbers, between
// groups floats. LENGTH: of every group, where it is whole vectors and divides K; 0: any. Of a decode's single row the
// next rows of weight are asked for early: each is too short for the hardware to see a stream in it.
template <int ROWS, int COLUMNS, int64_t LENGTH>
INLINE void tile(T* out, int64_t N, const Operands& o, int64_t m, int64_t n) {
    vec sums[ROWS][COLUMNS] = {};
    const int64_t G = LENGTH ? LENGTH : o.G;
    for (int64_t g = 0; g < o.KG; g++) {
        int64_t k = g * G;
        const int64_t stop = LENGTH || k + G < o.K ? k + G : o.K;
        ivec dots[ROWS][COLUMNS] = {};
        if (OFFSET)
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < COLUMNS; j++) dots[i][j] = o.offsets[(m + i) * o.KG + g];
        for (; k < stop; k += BYTES) {
            const int64_t count = LENGTH || stop - k >= BYTES ? BYTES : stop - k;
            Bytes x[ROWS];
            for (int i = 0; i < ROWS; i++) x[i] = bytes_of(o.x + (m + i) * o.K + k, count);
            for (int j = 0; j < COLUMNS; j++) {
                if (ROWS == 1) prefetch(o.weight + (n + j + 2 * COLUMNS) * o.K + k);
                Bytes weight = raised(bytes_of(o.weight + (n + j) * o.K + k, count));
                for (int i = 0; i < ROWS; i++) dots[i][j] = dot_add(dots[i][j], weight, x[i]);
            }
        }
        for (int j = 0; j < COLUMNS; j++)
            for (int i = 0; i < ROWS; i++) {
                vec scaled = __builtin_convertvector(dots[i][j], vec) * o.scales[(n + j) * o.KG + g];
                sums[i][j] += scaled * o.x_scales[(m + i) * o.KG + g];
            }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) store(out + (m + i) * N + n + j, hsum(sums[i][j]));
}

template <int ROWS, int64_t LENGTH>
INLINE void columns(T* out, int64_t N, const Operands& o, int64_t m, int64_t first, int64_t last) {
    int64_t n = first;
    for (; n + 4 <= last; n += 4) tile<ROWS, 4, LENGTH>(out, N, o, m, n);
    for (; n < last; n++) tile<ROWS, 1, LENGTH>(out, N, o, m, n);
}

constexpr int64_t BLOCK = 8;  // rows of weight that a thread takes: they stay near it while the rows of x pass

template <int64_t LENGTH>
static void all(T* out, int64_t M, int64_t N, const Operands& o) {
    const int64_t blocks = (N + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * BLOCK, last = first + BLOCK < N ? first + BLOCK : N, m = 0;
        for (; m + 4 <= M; m += 4) columns<4, LENGTH>(out, N, o, m, first, last);
        for (; m < M; m++) columns<1, LENGTH>(out, N, o, m, first, last);
    }
}

// out[M, N] = sum over groups of x_scale * scale * (dot product). offsets: 64 bytes for each group of x.
EXPORT void q8_matmul_forward(T* out, const int8_t* x, const float* x_scales, const int8_t* weight,
                              const float* scales, ivec* offsets, int64_t M, int64_t N, int64_t K, int64_t G) {
    const int64_t KG = (K + G - 1) / G;
    const Operands o = {x, weight, x_scales, scales, offsets, K, G, KG};
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#pragma omp parallel for schedule(static) if (M * K >= 1 << 16)
    for (int64_t i = 0; i < M * KG; i++) {
        ivec sums = {};
        for (int64_t k = i % KG * G, stop = k + G < K ? k + G : K; k < stop; k += BYTES)
            sums += offset_of(bytes_of(x + i / KG * K + k, stop - k < BYTES ? stop - k : BYTES));
        offsets[i] = sums;
    }
#endif
    const bool whole = G == 64 && K % 64 == 0;  // llama2.c's usual group
    (whole ? all<64> : all<0>)(out, M, N, o);
}
