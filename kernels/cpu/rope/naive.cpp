#include "common.hpp"

// a, b = a cos - b sin, a sin + b cos for each pair of the first R of H heads; `sign` turns the other way
EXPORT void rope(T* x, const int64_t* start, const float* cos, const float* sin, int64_t B, int64_t length, int64_t H,
                 int64_t HS, int64_t R, int64_t interleaved, float sign) {
    int64_t half = HS / 2;
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < length; t++)
            for (int64_t h = 0; h < R; h++) {
                T* head = x + ((b * length + t) * H + h) * HS;
                int64_t row = (start[b] + t) * half;
                for (int64_t i = 0; i < half; i++) {
                    T *first = head + (interleaved ? 2 * i : i), *second = head + (interleaved ? 2 * i + 1 : i + half);
                    float u = load(first), v = load(second), c = cos[row + i], s = sign * sin[row + i];
                    store(first, u * c - v * s);
                    store(second, u * s + v * c);
                }
            }
}
