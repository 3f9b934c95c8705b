#include "common.hpp"

constexpr int64_t CHUNK = 1 << 16;  // elements a thread takes at a time; as in simd.py
constexpr int64_t BLOCK = 1 << 12;  // elements summed in fp32

// Squares add up well in fp32 where their sum is in between: it did not overflow, and what underflowed is too small
// beside it to matter.
constexpr float LEAST = 0x1p-90f, MOST = std::numeric_limits<float>::max();

typedef double dvec __attribute__((vector_size(64)));

// The same in double, for the few blocks whose squares do not fit fp32, or are all 0: the block is in the cache.
static __attribute__((noinline)) double sum_in_double(const T* grad, int64_t length) {
    dvec sum[2] = {};
    for_vectors(length, [&](int64_t i, int64_t n, int64_t) {
        vec g = load_part(grad + i, n);
        vec8 halves[2];
        memcpy(halves, &g, sizeof g);
        for (int h = 0; h < 2; h++) {
            dvec wide = __builtin_convertvector(halves[h], dvec);
            sum[h] += wide * wide;
        }
    });
    double total = 0;
    for (int lane = 0; lane < 8; lane++) total += sum[0][lane] + sum[1][lane];
    return total;
}

// In fp32 a lane adds only 64 squares. A longer sum would drift: squares of bf16 values lie on a coarse grid, so that
// halves are common, and rounding them to even shortens a sum of 65536 by one part in a million.
static double sum_of_squares(const T* grad, int64_t length) {
    double total = 0;
    for (int64_t block = 0; block < length; block += BLOCK) {
        vec sum[CHAINS] = {};
        int64_t rest = length - block, size = rest < BLOCK ? rest : BLOCK;
        for_vectors(size, [&](int64_t i, int64_t n, int64_t k) {
            vec g = load_part(grad + block + i, n);
            sum[k] += g * g;
        });
        float found = hsum(sum);
        total += found >= LEAST && found <= MOST ? found : sum_in_double(grad + block, size);
    }
    return total;
}

// Two stages: each chunk's sum goes to its own place, and those few are then added in order. The chunks do not depend
// on the threads, so neither does a single bit of the result.
EXPORT void global_norm_forward(const T** grads, float* norm, const int64_t* sizes, int64_t tensors,
                                double* partials) {
#pragma omp parallel
    {
        int64_t first = 0;
        for (int64_t t = 0; t < tensors; t++) {
            int64_t count = (sizes[t] + CHUNK - 1) / CHUNK;
#pragma omp for schedule(static) nowait
            for (int64_t c = 0; c < count; c++) {
                int64_t rest = sizes[t] - c * CHUNK;
                partials[first + c] = sum_of_squares(grads[t] + c * CHUNK, rest < CHUNK ? rest : CHUNK);
            }
            first += count;
        }
    }
    int64_t chunks = 0;
    for (int64_t t = 0; t < tensors; t++) chunks += (sizes[t] + CHUNK - 1) / CHUNK;
    double total = 0;
    for (int64_t c = 0; c < chunks; c++) total += partials[c];
    *norm = float(std::sqrt(total));
}
