#include "common/async_copy.cuh"
#include "common/matrix.cuh"
#include "common/reduce.cuh"
#include "common/swizzle.cuh"
#include "common/types.cuh"

// out[M, N] = sum over groups of x_scale * scale * (dot product of the group), which is of whole numbers.
//
// A block has a tile of TILE x TILE, each of its four warps a quarter of that. What is in shared memory at a time is
// DEPTH bytes of each row, of one group: what lies beyond the group's end is 0.

constexpr int TILE = 64, DEPTH = 64, STAGES = 4, THREADS = 128;
constexpr int PIECES = DEPTH / PIECE_BYTES;
constexpr int PART = TILE / 2, ROWS = PART / 16, COLUMNS = PART / 8;  // a warp's tile, in those of an instruction
constexpr int STEP = 32;                                             // bytes of K that one instruction takes

struct Stage {
    signed char x[TILE * DEPTH], weight[TILE * DEPTH];
};

// sums += a b^T: a is 16 rows of 32 bytes as load_matrices has them, b 8 rows. PTX ISA, "mma.m16n8k32"
__device__ inline void multiply_add(int (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts the copies of `rows` rows from `first` on, of bytes start to stop, BYTES at a time.
template <int BYTES>
__device__ void stage(signed char* to, const signed char* from, int first, int rows, int K, int start, int stop) {
    constexpr int EACH = DEPTH / BYTES;
#pragma unroll
    for (int i = threadIdx.x; i < TILE * EACH; i += THREADS) {
        const int row = i / EACH, byte = i % EACH * BYTES, k = start + byte;
        const bool valid = first + row < rows && k < stop;
        const signed char* at = valid ? from + (first + row) * (long long)K + k : from;
        signed char* place = to + swizzled<PIECES>(row, byte / PIECE_BYTES) * PIECE_BYTES + byte % PIECE_BYTES;
        if constexpr (BYTES >= 4) copy_async_or_zero<BYTES>(place, at, valid);
        else *place = valid ? *at : 0;
    }
}

// 16 rows from `row` on, of the 32 bytes from piece `piece` on. The matrices are: rows first, then pieces.
__device__ inline void load_rows(unsigned (&to)[4], const signed char* tile, int row, int piece) {
    const int lane = threadIdx.x % WARP;
    load_matrices(to, tile + swizzled<PIECES>(row + lane % 16, piece + lane / 16) * PIECE_BYTES);
}

template <typename T, int BYTES>
__global__ void __launch_bounds__(THREADS)
    q8_matmul_mma(T* out, const signed char* x, const float* x_scales, const signed char* weight, const float* scales,
                  int M, int N, int K, int G, int KG) {
    __shared__ __align__(128) Stage stages[STAGES];
    const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int row0 = warp / 2 * PART, column0 = warp % 2 * PART;
    const int parts = (min(G, K) + DEPTH - 1) / DEPTH, steps = KG * parts;  // of each group, and all
    auto load = [&](int step) {
        const int g = step / parts, start = g * G + step % parts * DEPTH, stop = min(K, (g + 1) * G);
        Stage& to = stages[step % STAGES];
        stage<BYTES>(to.x, x, m0, M, K, start, stop);
        stage<BYTES>(to.weight, weight, n0, N, K, start, stop);
    };
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(step);
        close_copies();
    }
    float sums[ROWS][COLUMNS][4] = {};
    int dots[ROWS][COLUMNS][4] = {};
    for (int step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();
        __syncthreads();  // this stage has come, and nobody reads the one that is filled now
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        close_copies();

        const int g = step / parts, start = g * G + step % parts * DEPTH, stop = min(K, (g + 1) * G);
        const Stage& now = stages[step % STAGES];
#pragma unroll
        for (int k = 0; k < DEPTH / STEP; k++) {
            if (start + k * STEP >= stop) break;
            unsigned a[ROWS][4], b[COLUMNS / 2][4];
#pragma unroll
            for (int i = 0; i < ROWS; i++) load_rows(a[i], now.x, row0 + i * 16, k * 2);
#pragma unroll
            for (int j = 0; j < COLUMNS / 2; j++) load_rows(b[j], now.weight, column0 + j * 16, k * 2);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) multiply_add(dots[i][j], a[i], b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
        }
        if ((step + 1) % parts) continue;
        float of_x[ROWS][2], of_weight[COLUMNS][2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const int m = m0 + row0 + i * 16 + e * 8 + lane / 4;
                of_x[i][e] = m < M ? x_scales[m * (long long)KG + g] : 0;
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                const int n = n0 + column0 + j * 8 + lane % 4 * 2 + e;
                of_weight[j][e] = n < N ? scales[n * (long long)KG + g] : 0;
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    sums[i][j][e] += of_x[i][e / 2] * of_weight[j][e % 2] * dots[i][j][e];
                    dots[i][j][e] = 0;
                }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int m = m0 + row0 + i * 16 + e / 2 * 8 + lane / 4, n = n0 + column0 + j * 8 + lane % 4 * 2 + e % 2;
                if (m < M && n < N) out[m * (long long)N + n] = from_float<T>(sums[i][j][e]);
            }
}
