// Rows that are normalised one by one, and how they are cut into chunks for sums over them: layernorm's and rmsnorm's.
#pragma once

#include "common.hpp"

// Rows are cut into this many chunks at most, and each sums its own part of the parameters' gradients. The cut depends
// on the number of rows only, never on the number of threads, so that the sums are the same on every machine.
constexpr int64_t MAX_CHUNKS = 64, MIN_ROWS = 16;

INLINE int64_t chunk_count(int64_t rows) {
    int64_t wanted = (rows + MIN_ROWS - 1) / MIN_ROWS;
    return wanted < MAX_CHUNKS ? wanted : MAX_CHUNKS;
}

// What is normalised: x, or x + residual.
struct Row {
    const T *x, *residual;

    inline __attribute__((always_inline)) vec at(int64_t i, int64_t n) const {
        vec value = load_part(x + i, n);
        return residual ? value + load_part(residual + i, n) : value;
    }
};
