// Blocked matrix products: packing into panels, the register tile, and the loop over cache blocks.
//
// A product is C[i, j] = sum over k of A[i, k] * B[k, j]. Operands are packed into panels of *units*. A unit is 32 bits
// wide: one float, or, where the CPU has vdpbf16ps and T is bf16, the two bf16 of k and k + 1. A panel of width P holds
// P rows of A (or P columns of B) as [depth in units][P], so that the inner loop reads both operands in order, and the
// same loop serves fp32 and bf16. Without vdpbf16ps, bf16 is widened to fp32 while it is packed. Sums are fp32.
#pragma once

#include "common.hpp"

#include <algorithm>
#include <utility>

#if defined(T_BF16) && defined(__AVX512BF16__)
#define PAIRED 1
#else
#define PAIRED 0
#endif

// Elements of k in one unit.
constexpr int64_t UNIT = PAIRED ? 2 : 1;
constexpr int64_t units(int64_t k) { return (k + UNIT - 1) / UNIT; }

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A reg is one register of the machine. (A vec of common.hpp may be several, and the compiler keeps such a one in
// memory, which the inner loop cannot afford.) The register tile is TILE_ROWS x TILE_COLS of C: its sums, one row of B
// and one element of A fill the 32 registers of AVX-512 and NEON, or the 16 of others.
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, TILE_ROWS = 4;
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE_ROWS = 8;
#else
constexpr int LANES = 4, TILE_ROWS = 4;
#endif
constexpr int TILE_REGS = 3, TILE_COLS = TILE_REGS * LANES;

template <int L>
struct lanes {
    typedef float floats __attribute__((vector_size(4 * L)));
    typedef uint32_t words __attribute__((vector_size(4 * L)));
    typedef uint16_t halves __attribute__((vector_size(2 * L)));
};
using reg = lanes<LANES>::floats;

INLINE reg load_reg(const float* p) {
    reg v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_reg(float* p, reg v) { memcpy(p, &v, sizeof v); }

INLINE reg broadcast(const float* unit) {
    uint32_t bits;
    memcpy(&bits, unit, sizeof bits);
    return (reg)(lanes<LANES>::words{} + bits);
}

// sum + a * b, lane by lane; of both elements where a lane is a pair.
INLINE reg multiply_add(reg sum, reg a, reg b) {
#if PAIRED
    return (reg)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    return sum + a * b;
#endif
}

// C[r, c] = (ADD ? C[r, c] : 0) + sum over k < depth of A[r, k] * B[k, c], for ROWS rows and REGS * LANES columns.
// In units, A[r, k] is at a[r * a_row + k * a_k] and B[k, c] at b[k * b_k + c]; C[r, c] is the float c[r * c_row + c].
template <int ROWS, int REGS, bool ADD>
static void multiply_tile(float* c, int64_t c_row, const float* a, int64_t a_row, int64_t a_k, const float* b,
                          int64_t b_k, int64_t depth) {
    reg sum[ROWS][REGS] = {};
    for (int64_t k = 0; k < depth; k++, a += a_k, b += b_k) {
        reg column[REGS];
#pragma GCC unroll 8
        for (int v = 0; v < REGS; v++) column[v] = load_reg(b + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            reg row = broadcast(a + r * a_row);
#pragma GCC unroll 8
            for (int v = 0; v < REGS; v++) sum[r][v] = multiply_add(sum[r][v], row, column[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < REGS; v++) {
            float* to = c + r * c_row + v * LANES;
            store_reg(to, ADD ? load_reg(to) + sum[r][v] : sum[r][v]);
        }
}

// ---- packing --------------------------------------------------------------------------------------------------

// One operand: element (i, k) lies at p[i * row + k * depth]; one of the two strides is 1. i is A's row or B's column.
struct Operand {
    const T* p;
    int64_t row, depth;
    const T* at(int64_t i, int64_t k) const { return p + i * row + k * depth; }
};

// Interleaves the low (HIGH = 0) or high halves of a and b.
template <int L, int HIGH, class V, int... I>
INLINE V interleave(V a, V b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (HIGH * L / 2 + I / 2 + I % 2 * L)...);
}

// Transposes an L x L block: log2(L) rounds, each of which interleaves the first half of the rows with the second.
template <int L, class V>
INLINE void transpose(V (&rows)[L]) {
    const auto lane = std::make_integer_sequence<int, L>{};
#pragma GCC unroll 4
    for (int step = 1; step < L; step *= 2) {
        V next[L];
#pragma GCC unroll 16
        for (int i = 0; i < L / 2; i++) {
            next[2 * i] = interleave<L, 0>(rows[i], rows[i + L / 2], lane);
            next[2 * i + 1] = interleave<L, 1>(rows[i], rows[i + L / 2], lane);
        }
#pragma GCC unroll 16
        for (int i = 0; i < L; i++) rows[i] = next[i];
    }
}

// L units that follow one another along k, from memory where k is contiguous.
template <int L>
INLINE typename lanes<L>::floats units_along_k(const T* p) {
    typename lanes<L>::floats v;
#if PAIRED || !defined(T_BF16)
    memcpy(&v, p, sizeof v);
#else
    typename lanes<L>::halves h;
    memcpy(&h, p, sizeof h);
    v = (typename lanes<L>::floats)(__builtin_convertvector(h, typename lanes<L>::words) << 16);
#endif
    return v;
}

// The units of L neighbouring rows at one k, from memory where rows are contiguous; `next` is k + 1, where UNIT is 2.
template <int L>
INLINE typename lanes<L>::floats units_across(const T* p, [[maybe_unused]] const T* next) {
    using words [[maybe_unused]] = typename lanes<L>::words;
    typename lanes<L>::floats v;
#if !defined(T_BF16)
    memcpy(&v, p, sizeof v);
#else
    typename lanes<L>::halves h;
    memcpy(&h, p, sizeof h);
#if PAIRED
    typename lanes<L>::halves g;
    memcpy(&g, next, sizeof g);
    v = (typename lanes<L>::floats)(__builtin_convertvector(h, words) | __builtin_convertvector(g, words) << 16);
#else
    v = (typename lanes<L>::floats)(__builtin_convertvector(h, words) << 16);
#endif
#endif
    return v;
}

// One unit anywhere; an element at or past the end of k is zero.
INLINE void pack_unit(float* to, const Operand& from, int64_t i, int64_t k, [[maybe_unused]] int64_t end) {
#if PAIRED
    uint32_t low = from.at(i, k)->bits, high = k + 1 < end ? from.at(i, k + 1)->bits : 0;
    uint32_t bits = low | high << 16;
    memcpy(to, &bits, sizeof bits);
#else
    *to = load(from.at(i, k));
#endif
}

// Packs rows i to i + P (those at or past `end` as zeros), elements k to k + K, into one panel of units(K) x P.
template <int P>
static void pack_panel(float* panel, const Operand& from, int64_t i, int64_t end, int64_t k, int64_t K) {
    constexpr int L = P < LANES ? P : LANES;
    static_assert(P % L == 0, "a panel is a whole number of vectors");
    const int64_t rows = std::clamp<int64_t>(end - i, 0, P), depth = units(K);
    int64_t done = 0;  // units of every row packed by vectors; the rest goes one by one
    if (rows == P && from.depth == 1) {
        for (; (done + L) * UNIT <= K; done += L) {
            for (int r = 0; r < P; r += L) {
                typename lanes<L>::floats block[L];
#pragma GCC unroll 16
                for (int l = 0; l < L; l++) block[l] = units_along_k<L>(from.at(i + r + l, k + done * UNIT));
                transpose<L>(block);
#pragma GCC unroll 16
                for (int l = 0; l < L; l++) memcpy(panel + (done + l) * P + r, &block[l], sizeof block[l]);
            }
        }
    } else if (rows == P && from.row == 1) {
        for (; (done + 1) * UNIT <= K; done++) {
            const T* p = from.at(i, k + done * UNIT);
#pragma GCC unroll 4
            for (int r = 0; r < P; r += L) {
                auto v = units_across<L>(p + r, p + r + from.depth);
                memcpy(panel + done * P + r, &v, sizeof v);
            }
        }
    }
    for (; done < depth; done++) {
        for (int64_t r = 0; r < rows; r++) pack_unit(panel + done * P + r, from, i + r, k + done * UNIT, k + K);
        for (int64_t r = rows; r < P; r++) panel[done * P + r] = 0;
    }
}

// ---- the product ----------------------------------------------------------------------------------------------

// A block of C is summed over slices of k; A's and B's part of a slice are packed by all threads together, then shared.
// A's panel of a slice (TILE_ROWS x MAX_DEPTH) stays in L1 while it meets a task's panels of B, which stay in L2.
constexpr int64_t BLOCK_ROWS = 1024, BLOCK_COLS = 1536, MAX_DEPTH = 512;
constexpr int64_t TASK_ROWS = 64, TASK_COLS = 4 * TILE_COLS;

// Bytes of scratch `gemm` needs: packed A, packed B, and the sums of a block between slices.
constexpr int64_t GEMM_WORKSPACE = 4 * (BLOCK_ROWS * MAX_DEPTH + MAX_DEPTH * BLOCK_COLS + BLOCK_ROWS * BLOCK_COLS);

// Cuts n into as few pieces of at most `most` as possible, all of one size, a multiple of `multiple`.
INLINE int64_t even_piece(int64_t n, int64_t most, int64_t multiple) {
    int64_t pieces = (n + most - 1) / most;
    return round_up((n + pieces - 1) / pieces, multiple);
}

// Sums of one packed panel of A along k, added to sums[TILE_ROWS]. In fp64: a column of few large values among many
// small ones loses those in fp32, and this is one pass over what the product takes hundreds of.
INLINE void add_row_sums(double* sums, const float* panel, int64_t depth) {
    using floats = lanes<TILE_ROWS>::floats;
    using words = lanes<TILE_ROWS>::words;
    typedef double doubles __attribute__((vector_size(TILE_ROWS * sizeof(double))));
    auto wide = [](floats x) { return __builtin_convertvector(x, doubles); };
    auto at = [=](int64_t k) {
        words w;
        memcpy(&w, panel + k * TILE_ROWS, sizeof w);
        return PAIRED ? wide((floats)(w << 16)) + wide((floats)(w & 0xffff0000)) : wide((floats)w);
    };
    doubles sum[CHAINS] = {};
    int64_t k = 0;
    for (; k + CHAINS <= depth; k += CHAINS)
        for (int64_t c = 0; c < CHAINS; c++) sum[c] += at(k + c);
    for (; k < depth; k++) sum[0] += at(k);
    doubles total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int r = 0; r < TILE_ROWS; r++) sums[r] += total[r];
}

// Hands a finished tile, whose first element is C[i, j], to `finish`; rows from i1 and columns from j1 on are padding.
template <class Finish>
INLINE void finish_tile(const float* tile, int64_t i, int64_t i1, int64_t j, int64_t j1, Finish finish) {
    for (int64_t r = 0; r < TILE_ROWS && i + r < i1; r++)
        for (int64_t c = 0; c < TILE_COLS && j + c < j1; c += VEC) {
            int64_t n = std::min({VEC, TILE_COLS - c, j1 - j - c});
            finish(i + r, j + c, n, load_part(tile + r * TILE_COLS + c, n));
        }
}

// C = A B. Calls finish(i, j, n, value) once for every n <= 16 neighbours C[i, j .. j + n). Every element is summed in
// one fixed order, whatever the number of threads. row_sums, if not null, receives the sum of each row of A.
template <class Finish>
static void gemm(int64_t M, int64_t N, int64_t K, Operand A, Operand B, double* row_sums, void* workspace,
                 Finish finish) {
    const int64_t block_rows = even_piece(M, BLOCK_ROWS, TILE_ROWS), block_cols = even_piece(N, BLOCK_COLS, TILE_COLS);
    const int64_t slice = even_piece(K, MAX_DEPTH * UNIT, UNIT);
    float* packed_a = (float*)workspace;
    float* packed_b = packed_a + BLOCK_ROWS * MAX_DEPTH;
    float* partial = packed_b + MAX_DEPTH * BLOCK_COLS;  // tile after tile

#pragma omp parallel
    for (int64_t j0 = 0; j0 < N; j0 += block_cols)
        for (int64_t i0 = 0; i0 < M; i0 += block_rows)
            for (int64_t k0 = 0; k0 < K; k0 += slice) {
                const int64_t i1 = std::min(M, i0 + block_rows), j1 = std::min(N, j0 + block_cols);
                const int64_t k_count = std::min(K - k0, slice), depth = units(k_count);
                const bool first = k0 == 0, last = k0 + slice >= K;
#pragma omp for schedule(static) nowait
                for (int64_t i = i0; i < i1; i += TILE_ROWS) {
                    float* panel = packed_a + (i - i0) * depth;
                    pack_panel<TILE_ROWS>(panel, A, i, i1, k0, k_count);
                    if (row_sums && j0 == 0) {
                        double sums[TILE_ROWS] = {};
                        add_row_sums(sums, panel, depth);
                        for (int64_t r = i; r < std::min(i + TILE_ROWS, i1); r++)
                            row_sums[r] = sums[r - i] + (first ? 0.0 : row_sums[r]);
                    }
                }
#pragma omp for schedule(static)
                for (int64_t j = j0; j < j1; j += TILE_COLS)
                    pack_panel<TILE_COLS>(packed_b + (j - j0) * depth, B, j, j1, k0, k_count);

#pragma omp for schedule(dynamic) collapse(2)
                for (int64_t task_j = j0; task_j < j1; task_j += TASK_COLS)
                    for (int64_t task_i = i0; task_i < i1; task_i += TASK_ROWS)
                        for (int64_t i = task_i; i < std::min(task_i + TASK_ROWS, i1); i += TILE_ROWS)
                            for (int64_t j = task_j; j < std::min(task_j + TASK_COLS, j1); j += TILE_COLS) {
                                const float* panel_a = packed_a + (i - i0) * depth;
                                const float* panel_b = packed_b + (j - j0) * depth;
                                float* tile = partial + (i - i0) * block_cols + (j - j0) * TILE_ROWS;
                                // Slices are summed apart first: that rounds less than one long sum.
                                (first ? multiply_tile<TILE_ROWS, TILE_REGS, false>
                                       : multiply_tile<TILE_ROWS, TILE_REGS, true>)(
                                    tile, TILE_COLS, panel_a, 1, TILE_ROWS, panel_b, TILE_COLS, depth);
                                if (last) finish_tile(tile, i, i1, j, j1, finish);
                            }
            }
}
