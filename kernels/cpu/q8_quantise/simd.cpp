#include "common.hpp"

constexpr int64_t PARALLEL_FROM = 1 << 15;  // elements: less is done before other threads have woken
constexpr uint32_t MAGNITUDE = 0x7fffffff, INFINITE = 0x7f800000;

typedef int8_t bvec __attribute__((vector_size(16)));

// Of magnitudes the bits grow with the value, and a NaN's are above infinity's.
INLINE uint32_t largest_bits(const T* x, int64_t n) {
    uvec most[CHAINS] = {};
    for_vectors(n, [&](int64_t i, int64_t count, int64_t k) {
        uvec bits = (uvec)load_part(x + i, count) & MAGNITUDE;
        most[k] = bits > most[k] ? bits : most[k];
    });
    for (int64_t k = 1; k < CHAINS; k++) most[0] = most[k] > most[0] ? most[k] : most[0];
    uint32_t found = 0;
    for (int64_t i = 0; i < VEC; i++) found = most[0][i] > found ? most[0][i] : found;
    return found;
}

INLINE float quantise_group(const T* x, int8_t* q, int64_t n) {
    uint32_t bits = largest_bits(x, n);
    if (bits >= INFINITE) {
        memset(q, 0, n);
        return std::numeric_limits<float>::quiet_NaN();
    }
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    float scale = bits ? largest / 127 : 1;
    for_vectors(n, [&](int64_t i, int64_t count, int64_t) {
        // a true division: a product with 1 / scale rounds some values that lie half way elsewhere
        vec ratio = round16(load_part(x + i, count) / scale);
        bvec bytes = __builtin_convertvector(__builtin_convertvector(ratio, ivec), bvec);
        if (count == VEC)
            memcpy(q + i, &bytes, VEC);
        else
            memcpy(q + i, &bytes, count);
    });
    return scale;
}

EXPORT void q8_quantise_forward(const T* x, int8_t* q, float* scales, int64_t M, int64_t K, int64_t G) {
    const int64_t KG = (K + G - 1) / G;
#pragma omp parallel for schedule(static) if (M * K >= PARALLEL_FROM)
    for (int64_t i = 0; i < M * KG; i++) {
        int64_t start = i % KG * G, at = i / KG * K + start;
        scales[i] = quantise_group(x + at, q + at, start + G < K ? G : K - start);
    }
}
