#include "tiles.hpp"

// Rows of weight are read as they lie: 16 of them by 64 bytes of k are a tile of A. x is packed as B wants it: fours of k
// of 16 rows. A step that reaches beyond a group is 0 in x, so what weight has there does not count. A tile of sums is
// [row of weight][row of x]; it is scaled after each group, while the tiles multiply the next one.
constexpr int64_t BYTES = 64;  // of k a step
constexpr int64_t TILE_BYTES = 1024;

INLINE int64_t steps_of(int64_t G) { return (G + BYTES - 1) / BYTES; }

struct Problem {
    const int8_t *x, *weight;
    const float *x_scales, *scales;
    int64_t M, N, K, G, KG;
    int64_t group_bytes() const { return steps_of(G) * TILE_BYTES; }  // of 16 packed rows
    int64_t row_bytes() const { return KG * group_bytes(); }
};

// 16 rows of x from m on, those past the last one as zeros; and their scales, [group][row].
static void pack_x(int8_t* to, float* to_scales, const Problem& p, int64_t m) {
    const int64_t rows = std::clamp<int64_t>(p.M - m, 0, TILE);
    for (int64_t g = 0; g < p.KG; g++) {
        const int64_t stop = std::min(p.K, (g + 1) * p.G);
        for (int64_t k = g * p.G; k < (g + 1) * p.G; k += BYTES, to += TILE_BYTES) {
            const int64_t n = std::clamp<int64_t>(stop - k, 0, BYTES);
            const __mmask64 inside = n == BYTES ? ~0ull : (1ull << n) - 1;
            reg block[TILE];
#pragma GCC unroll 16
            for (int r = 0; r < TILE; r++)
                block[r] = (reg)_mm512_maskz_loadu_epi8(r < rows ? inside : 0, p.x + (m + r) * p.K + k);
            transpose<TILE>(block);
#pragma GCC unroll 16
            for (int q = 0; q < TILE; q++) memcpy(to + q * 64, &block[q], sizeof block[q]);
        }
        for (int64_t r = 0; r < TILE; r++) to_scales[g * TILE + r] = r < rows ? p.x_scales[(m + r) * p.KG + g] : 0;
    }
}

// Up to 16 rows of weight by 64 bytes, copied so that nothing past the tensor's end is read.
INLINE void copy_edge(int8_t* to, const Problem& p, int64_t n, int64_t k) {
    for (int64_t r = 0; r < TILE; r++) {
        const int64_t left = n + r < p.N ? std::clamp<int64_t>(p.K - k, 0, BYTES) : 0;
        const __mmask64 inside = left == BYTES ? ~0ull : (1ull << left) - 1;
        _mm512_storeu_si512(to + r * BYTES, _mm512_maskz_loadu_epi8(inside, p.weight + (n + r) * p.K + k));
    }
}

// sums += dots * scale of the row of weight * scale of the row of x, for 16 of each.
INLINE void scale_tile(vec* sums, const int32_t* dots, const float* scales, int64_t apart, int64_t rows, vec x_scales) {
    for (int64_t r = 0; r < rows; r++) {
        ivec whole;
        memcpy(&whole, dots + r * TILE, sizeof whole);
        sums[r] += __builtin_convertvector(whole, vec) * scales[r * apart] * x_scales;
    }
}

// 32 rows of weight from n on against 32 packed rows of x from m on.
static void square(T* out, const Problem& p, const int8_t* x, const float* x_scales, int64_t m, int64_t n) {
    alignas(64) int32_t dots[2][4][TILE * TILE];
    alignas(64) int8_t edge[2 * TILE_BYTES];
    vec sums[4][TILE] = {};
    const int64_t below = std::min(TILE, p.N - n), above = std::clamp<int64_t>(p.N - n - TILE, 0, TILE);
    const int64_t half = p.row_bytes();  // to the next 16 rows of x
    const bool wide = m + TILE < p.M;    // or the tiles on the right are not wanted
    auto scale = [&](int64_t g) {
        for (int64_t right = 0; right < 1 + wide; right++) {
            const vec by = load16(x_scales + (right * p.KG + g) * TILE);
            scale_tile(sums[right], dots[g % 2][right], p.scales + n * p.KG + g, p.KG, below, by);
            scale_tile(sums[2 + right], dots[g % 2][2 + right], p.scales + (n + TILE) * p.KG + g, p.KG, above, by);
        }
    };
    for (int64_t g = 0; g < p.KG; g++) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t s = 0; s < steps_of(p.G); s++) {
            const int64_t k = g * p.G + s * BYTES;
            const int8_t *a = p.weight + n * p.K + k, *b = x + g * p.group_bytes() + s * TILE_BYTES;
            int64_t line = p.K, next = TILE * p.K;
            if (n + 2 * TILE > p.N || (n + 2 * TILE == p.N && k + BYTES > p.K)) {
                copy_edge(edge, p, n, k);
                copy_edge(edge + TILE_BYTES, p, n + TILE, k);
                a = edge, line = BYTES, next = TILE_BYTES;
            }
            _tile_loadd(4, a, line);
            _tile_loadd(6, b, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(5, a + next, line);
            _tile_dpbssd(2, 5, 6);
            if (!wide) continue;
            _tile_loadd(7, b + half, 64);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(3, 5, 7);
        }
        if (g) scale(g - 1);
        _tile_stored(0, dots[g % 2][0], 64);
        _tile_stored(2, dots[g % 2][2], 64);
        if (!wide) continue;
        _tile_stored(1, dots[g % 2][1], 64);
        _tile_stored(3, dots[g % 2][3], 64);
    }
    scale(p.KG - 1);
    for (int64_t tile = 0; tile < 4; tile++) {  // [weight][x] becomes rows of out
        const int64_t row = m + tile % 2 * TILE, column = n + tile / 2 * TILE;
        transpose<TILE>((reg(&)[TILE])sums[tile]);
        for (int64_t r = 0; r < std::min(TILE, p.M - row); r++)
            if (column < p.N) store_part(out + (row + r) * p.N + column, sums[tile][r], std::min(TILE, p.N - column));
    }
}

// out[M, N] = sum over groups of x_scale * scale * (dot product). workspace: x and its scales, packed (amx.py).
EXPORT void q8_matmul_forward(T* out, const int8_t* x, const float* x_scales, const int8_t* weight,
                              const float* scales, int8_t* workspace, int64_t M, int64_t N, int64_t K, int64_t G) {
    const int64_t KG = (K + G - 1) / G, padded = round_up(M, SIDE);
    const Problem p = {x, weight, x_scales, scales, M, N, K, G, KG};
    int8_t* packed = (int8_t*)round_up((int64_t)workspace, 64);
    float* packed_scales = (float*)(packed + padded / TILE * p.row_bytes());
#pragma omp parallel
    {
        Tiles tiles;
#pragma omp for schedule(static)
        for (int64_t m = 0; m < padded; m += TILE)
            pack_x(packed + m / TILE * p.row_bytes(), packed_scales + m * KG, p, m);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n += SIDE)
            for (int64_t m = 0; m < M; m += SIDE)
                square(out, p, packed + m / TILE * p.row_bytes(), packed_scales + m * KG, m, n);
    }
}
