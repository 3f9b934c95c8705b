// AMX's tiles: eight registers of 16 rows of 64 bytes (Intel's Software Developer's Manual, volume 1, chapter 18). Four
// hold sums here, two an operand each: a square of 32 x 32 sums needs two tiles of A and two of B a step.
#pragma once

#include "gemm.hpp"

#if !defined(__AMX_TILE__) || !defined(__AVX512BW__)
#error "no AMX: neither every CPU nor every compiler has it (g++ 11 or later)"
#endif

constexpr int64_t TILE = 16, SIDE = 2 * TILE;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A thread's tiles, from here to the end of the scope.
struct Tiles {
    Tiles() {
        const TileConfig config;
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
};
