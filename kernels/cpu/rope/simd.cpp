#include "common.hpp"

constexpr int64_t CHUNK = 128;  // channels of a head whose cosines and sines are at hand: a whole head, as a rule

// Neighbours change places.
INLINE vec swapped(vec v) {
    const ivec other = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14};
#if defined(__clang__)
    vec r;
    for (int i = 0; i < VEC; i++) r[i] = v[other[i]];
    return r;
#else
    return __builtin_shuffle(v, other);
#endif
}

// Pairs side by side: x = x cos + swapped(x) sin, each cosine twice in a row, and each sine too, at first negative.
static void interleaved(T* x, const float* cos, const float* sin, int64_t HS, int64_t R, float sign) {
    alignas(64) float c[CHUNK], s[CHUNK];
    for (int64_t begin = 0; begin < HS; begin += CHUNK) {
        int64_t some = HS - begin < CHUNK ? HS - begin : CHUNK;
        for (int64_t i = 0; i < some / 2; i++) {
            c[2 * i] = c[2 * i + 1] = cos[begin / 2 + i];
            s[2 * i + 1] = sign * sin[begin / 2 + i];
            s[2 * i] = -s[2 * i + 1];
        }
        for (int64_t h = 0; h < R; h++) {
            T* head = x + h * HS + begin;
            for_vectors(some, [&](int64_t i, int64_t n, int64_t) {
                vec v = load_part(head + i, n);
                store_part(head + i, v * load_part(c + i, n) + swapped(v) * load_part(s + i, n), n);
            });
        }
    }
}

// Pairs a half head apart.
static void halves(T* x, const float* cos, const float* sin, int64_t HS, int64_t R, float sign) {
    int64_t half = HS / 2;
    for (int64_t h = 0; h < R; h++) {
        T *first = x + h * HS, *second = first + half;
        for_vectors(half, [&](int64_t i, int64_t n, int64_t) {
            vec u = load_part(first + i, n), v = load_part(second + i, n);
            vec c = load_part(cos + i, n), s = load_part(sin + i, n) * sign;
            store_part(first + i, u * c - v * s, n);
            store_part(second + i, u * s + v * c, n);
        });
    }
}

EXPORT void rope(T* x, const int64_t* start, const float* cos, const float* sin, int64_t B, int64_t length, int64_t H,
                 int64_t HS, int64_t R, int64_t is_interleaved, float sign) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < B * length; row++) {
        int64_t place = (start[row / length] + row % length) * (HS / 2);
        (is_interleaved ? interleaved : halves)(x + row * H * HS, cos + place, sin + place, HS, R, sign);
    }
}
