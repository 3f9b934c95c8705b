// Products of bf16 by AMX: 16 x 16 x 32 an instruction (TDPBF16PS; Intel's Software Developer's Manual, volume 2).
//
// A's panel of a step of k lies as it is in rows: 16 rows of 32 bf16. B's lies as the instruction wants it: 16 lines of
// the pairs of k and k + 1 of 16 columns, which is what gemm.hpp's panels are.
#pragma once

#include "tiles.hpp"

#if !defined(__AMX_BF16__) || !PAIRED
#error "bf16 alone, and where the compiler knows AMX's products of it"
#endif

constexpr int64_t STEP = 32;                  // elements of k of a step
constexpr int64_t TILE_FLOATS = TILE * TILE;  // of a tile of sums, and of a step of an operand's tile (as units)
constexpr int64_t steps(int64_t k) { return (k + STEP - 1) / STEP; }

// Where two neighbouring tiles of an operand lie: bytes from line to line, from a step of k to the next, and from one
// tile to the other.
struct Pair {
    const void* p;
    int64_t line, step, apart;
};
// Two tiles packed by pack_tile_rows or pack_tile_columns: lines and steps follow one another.
INLINE Pair packed(const float* p, int64_t apart) { return {p, 64, 4 * TILE_FLOATS, 4 * apart}; }

// Where four tiles of sums lie: bytes from line to line, floats to the tile below and to the one on the right.
struct Sums {
    float* p;
    int64_t line, below, right;
};
INLINE Sums rows_of(float* p, int64_t width) { return {p, 4 * width, TILE * width, TILE}; }

// The 32 x 32 sums of two tiles of rows of A and two of columns of B over `count` steps, added to what is there if ADD.
// Calls beside(s) in each step: the tiles are busy for 64 cycles then, and the rest of the core has nothing to do.
template <bool ADD, class Beside>
INLINE void multiply_square(Sums to, Pair A, Pair B, int64_t count, Beside beside) {
    if (ADD) {
        _tile_loadd(0, to.p, to.line);
        _tile_loadd(1, to.p + to.right, to.line);
        _tile_loadd(2, to.p + to.below, to.line);
        _tile_loadd(3, to.p + to.below + to.right, to.line);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const char *a = (const char*)A.p, *b = (const char*)B.p;
    for (int64_t s = 0; s < count; s++, a += A.step, b += B.step) {
        _tile_loadd(4, a, A.line);
        _tile_loadd(6, b, B.line);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + B.apart, B.line);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + A.apart, A.line);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        beside(s);
    }
    _tile_stored(0, to.p, to.line);
    _tile_stored(1, to.p + to.right, to.line);
    _tile_stored(2, to.p + to.below, to.line);
    _tile_stored(3, to.p + to.below + to.right, to.line);
}
template <bool ADD>
INLINE void multiply_square(Sums to, Pair A, Pair B, int64_t count) {
    multiply_square<ADD>(to, A, B, count, [](int64_t) {});
}

// Packs rows i to i + 16 of A (those at or past `end` as zeros), K elements from k on, zeros to the end of a step.
static void pack_tile_rows(float* panel, const Operand& from, int64_t i, int64_t end, int64_t k, int64_t K) {
    const int64_t rows = std::clamp<int64_t>(end - i, 0, TILE);
    for (int64_t done = 0; done < K; done += STEP, panel += TILE_FLOATS) {
        const int64_t n = std::min(STEP, K - done);
        if (from.depth == 1) {
            for (int64_t r = 0; r < rows; r++) {
                const __mmask32 inside = __mmask32(~0ull >> (64 - n));
                _mm512_storeu_si512(panel + r * TILE, _mm512_maskz_loadu_epi16(inside, from.at(i + r, k + done)));
            }
        } else if (rows == TILE && n == STEP && from.row == 1) {
            lanes<16>::floats block[16];
#pragma GCC unroll 16
            for (int u = 0; u < 16; u++) {
                const T* p = from.at(i, k + done + 2 * u);
                block[u] = units_across<16>(p, p + from.depth);
            }
            transpose<16>(block);
#pragma GCC unroll 16
            for (int r = 0; r < 16; r++) memcpy(panel + r * TILE, &block[r], sizeof block[r]);
        } else {
            for (int64_t r = 0; r < rows; r++)
                for (int64_t u = 0; u < TILE; u++)
                    if (UNIT * u < n) pack_unit(panel + r * TILE + u, from, i + r, k + done + UNIT * u, k + K);
                    else panel[r * TILE + u] = 0;
        }
        memset(panel + rows * TILE, 0, (TILE - rows) * TILE * sizeof(float));
    }
}

// Packs columns j to j + 16 of B alike.
static void pack_tile_columns(float* panel, const Operand& from, int64_t j, int64_t end, int64_t k, int64_t K) {
    pack_panel<TILE>(panel, from, j, end, k, K);
    const int64_t filled = units(K) * TILE;
    memset(panel + filled, 0, (steps(K) * TILE_FLOATS - filled) * sizeof(float));
}

// Adds the sum of each of a panel's 16 rows to sums[0 … 15]: lanes in fp32 over eight steps, which rounds little, and
// those in fp64.
INLINE void add_panel_sums(double* sums, const float* panel, int64_t count) {
    constexpr int64_t SOME = 8;
    for (int64_t r = 0; r < TILE; r++)
        for (int64_t s = 0; s < count; s += SOME) {
            vec sum = {};
            for (int64_t t = s; t < std::min(s + SOME, count); t++) {
                uvec pair;
                memcpy(&pair, panel + t * TILE_FLOATS + r * TILE, sizeof pair);
                sum += (vec)(pair << 16) + (vec)(pair & 0xffff0000);
            }
            double total = 0;
            for (int64_t lane = 0; lane < VEC; lane++) total += double(sum[lane]);
            sums[r] += total;
        }
}

// Of a block that is summed over slices of k: A's part is packed by all threads together and streams from the shared
// cache; a thread packs some columns of B, which stay in its L2, and meets them with all of A.
constexpr int64_t AMX_ROWS = 2048, AMX_COLS = 1536, AMX_DEPTH = 1024, AMX_CHUNK = 384;
constexpr int64_t AMX_WORKSPACE =
    64 + 2 * AMX_DEPTH * (AMX_ROWS + AMX_COLS + 2 * SIDE) + 4 * (AMX_ROWS + SIDE) * (AMX_COLS + SIDE);

// A square of sums that waits to be finished, row by row.
template <class Finish>
struct Square {
    Finish finish;
    const float* sums = nullptr;
    int64_t i = 0, j = 0, n[2] = {}, left = 0;
    void set(const float* of, int64_t row, int64_t rows_end, int64_t column, int64_t columns_end) {
        sums = of, i = row, j = column, left = std::min(SIDE, rows_end - row);
        n[0] = std::min(TILE, columns_end - column);
        n[1] = std::clamp<int64_t>(columns_end - column - TILE, 0, TILE);
    }
    inline __attribute__((always_inline)) void finish_some(int64_t rows) {
        for (; rows > 0 && left > 0; rows--) {
            const int64_t r = --left;
            const float* row = sums + r / TILE * 2 * TILE_FLOATS + r % TILE * TILE;
            finish(i + r, j, n[0], load16(row));
            if (n[1]) finish(i + r, j + TILE, n[1], load16(row + TILE_FLOATS));
        }
    }
};

// As `gemm`, and like it in one fixed order whatever the number of threads.
template <class Finish>
static void gemm_amx(int64_t M, int64_t N, int64_t K, Operand A, Operand B, double* row_sums, void* workspace,
                     Finish finish) {
    const int64_t block_rows = even_piece(M, AMX_ROWS, SIDE), block_cols = even_piece(N, AMX_COLS, SIDE);
    const int64_t slice = even_piece(K, AMX_DEPTH, STEP), apart = steps(slice) * TILE_FLOATS;
    float* packed_a = (float*)round_up((int64_t)workspace, 64);
    float* packed_b = packed_a + (AMX_ROWS + SIDE) * AMX_DEPTH / UNIT;
    float* partial = packed_b + (AMX_COLS + SIDE) * AMX_DEPTH / UNIT;  // square after square
    const int64_t threads = omp_get_max_threads();
    const int64_t most = std::min<int64_t>(AMX_CHUNK, round_up((block_cols + threads - 1) / threads, SIDE));

#pragma omp parallel
    {
        Tiles tiles;
        alignas(64) float squares[2][SIDE * SIDE];
        Square<Finish> before{finish};  // whose sums are finished beside the next one's products
        int which = 0;
        for (int64_t j0 = 0; j0 < N; j0 += block_cols)
            for (int64_t i0 = 0; i0 < M; i0 += block_rows)
                for (int64_t k0 = 0; k0 < K; k0 += slice) {
                    const int64_t i1 = std::min(M, i0 + block_rows), j1 = std::min(N, j0 + block_cols);
                    const int64_t k_count = std::min(K - k0, slice), count = steps(k_count);
                    const bool first = k0 == 0, last = k0 + slice >= K;
                    const int64_t chunk = even_piece(j1 - j0, most, SIDE);
#pragma omp for schedule(static)
                    for (int64_t i = i0; i < round_up(i1 - i0, SIDE) + i0; i += TILE) {
                        float* panel = packed_a + (i - i0) / TILE * apart;
                        pack_tile_rows(panel, A, i, i1, k0, k_count);
                        if (row_sums && j0 == 0) {
                            double sums[TILE] = {};
                            add_panel_sums(sums, panel, count);
                            for (int64_t r = i; r < std::min(i + TILE, i1); r++)
                                row_sums[r] = sums[r - i] + (first ? 0.0 : row_sums[r]);
                        }
                    }
#pragma omp for schedule(dynamic)
                    for (int64_t begin = j0; begin < j1; begin += chunk) {
                        const int64_t end = std::min(begin + chunk, j1), wide = (end - begin + SIDE - 1) / SIDE;
                        for (int64_t j = begin; j < begin + wide * SIDE; j += TILE)
                            pack_tile_columns(packed_b + (j - j0) / TILE * apart, B, j, j1, k0, k_count);
                        const int64_t lines = (2 * apart * 4 / 64 + wide * count - 1) / (wide * count);
                        for (int64_t i = i0; i < i1; i += SIDE)
                            for (int64_t j = begin; j < end; j += SIDE) {
                                const float* a = packed_a + (i - i0) / TILE * apart;
                                const float* b = packed_b + (j - j0) / TILE * apart;
                                const float* ahead = a + 2 * apart + (j - begin) / SIDE * count * lines * 16;
                                float* sums = first && last ? squares[which ^= 1]
                                                            : partial + (i - i0) * block_cols + (j - j0) * SIDE;
                                const int64_t some = (before.left + count - 1) / count;
                                auto beside = [&](int64_t) {
                                    for (int64_t l = 0; l < lines; l++, ahead += 16) __builtin_prefetch(ahead, 0, 2);
                                    before.finish_some(some);
                                };
                                const Sums to = {sums, 64, 2 * TILE_FLOATS, TILE_FLOATS};
                                const Pair pair_a = packed(a, apart), pair_b = packed(b, apart);
                                if (first) multiply_square<false>(to, pair_a, pair_b, count, beside);
                                else multiply_square<true>(to, pair_a, pair_b, count, beside);
                                if (last) before.set(sums, i, i1, j, end);
                            }
                        before.finish_some(SIDE);
                    }
                }
    }
}
