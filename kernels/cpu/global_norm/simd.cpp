#include "common.hpp"

constexpr int64_t CHUNK = 1 << 16;  // elements a thread takes at a time; as in simd.py
constexpr int64_t BLOCK = 1 << 12;  // elements summed in fp32

// In fp32 a lane adds only 64 squares. A longer sum would drift: squares of bf16 values lie on a coarse grid, so that
// halves are common, and rounding them to even shortens a sum of 65536 by one part in a million.
static double sum_of_squares(const T* grad, int64_t length) {
    double total = 0;
    for (int64_t block = 0; block < length; block += BLOCK) {
        vec sum[CHAINS] = {};
        int64_t rest = length - block;
        for_vectors(rest < BLOCK ? rest : BLOCK, [&](int64_t i, int64_t n, int64_t k) {
            vec g = load_part(grad + block + i, n);
            sum[k] += g * g;
        });
        total += hsum(sum);
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
