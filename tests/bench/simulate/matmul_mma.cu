// out = a b^T in bf16 with fp32 sums: tiles of 128 x 128 x 32, three stages of cp.async, ldmatrix and mma.sync.
// a is M x K, b is N x K, out is M x N; N and K are multiples of 8. A test kernel: test_mutations.py breaks its lines.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/async_copy.cuh"
#include "common/matrix.cuh"

using bf16 = __nv_bfloat16;
constexpr int ROWS = 128, COLUMNS = 128, DEPTH = 32, STAGES = 3, THREADS = 256;
constexpr int PIECE = 8;  // elements of 16 bytes
constexpr int A_TILE = ROWS * DEPTH, B_TILE = COLUMNS * DEPTH;

// Where piece `piece` of a row of 32 elements lies: permuted, so that the 8 rows of a matrix lie in different banks.
__device__ int place(int row, int piece) { return row * DEPTH + (piece ^ row / 2 % 4) * PIECE; }

// One tile of rows [first_row, first_row + count), columns [first, first + DEPTH); zeros outside of the matrix.
__device__ void copy_tile(bf16* to, const bf16* from, int first_row, int count, int rows, int first, int columns) {
    for (int i = threadIdx.x; i < count * (DEPTH / PIECE); i += THREADS) {
        int row = i / (DEPTH / PIECE), piece = i % (DEPTH / PIECE), r = first_row + row, c = first + piece * PIECE;
        bool inside = r < rows && c < columns;
        copy_async_or_zero<16>(to + place(row, piece), from + (inside ? (long long)r * columns + c : 0), inside);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) matmul_mma(bf16* out, const bf16* a, const bf16* b, int M, int N, int K) {
    extern __shared__ __align__(128) bf16 tiles[];
    bf16 *a_tiles = tiles, *b_tiles = tiles + STAGES * A_TILE;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp / 4 * 64, column = warp % 4 * 32;  // of the warp's part of the tile
    const int first_row = blockIdx.y * ROWS, first_column = blockIdx.x * COLUMNS, steps = (K + DEPTH - 1) / DEPTH;

    auto copy = [&](int step) {
        if (step < steps) {
            copy_tile(a_tiles + step % STAGES * A_TILE, a, first_row, ROWS, M, step * DEPTH, K);
            copy_tile(b_tiles + step % STAGES * B_TILE, b, first_column, COLUMNS, N, step * DEPTH, K);
        }
        close_copies();
    };
    float sums[4][4][4] = {};
    for (int step = 0; step < STAGES - 1; step++) copy(step);
    for (int step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        copy(step + STAGES - 1);
        const bf16 *a_tile = a_tiles + step % STAGES * A_TILE, *b_tile = b_tiles + step % STAGES * B_TILE;
#pragma unroll 1
        for (int k = 0; k < DEPTH / 16; k++) {
            unsigned a_part[4][4], b_part[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                load_matrices(a_part[i], a_tile + place(row + i * 16 + lane % 16, k * 2 + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                load_matrices(b_part[j], b_tile + place(column + j * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const unsigned pair[2] = {b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]};
                    multiply_add<bf16>(sums[i][j], a_part[i], pair);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            for (int half = 0; half < 2; half++) {
                int r = first_row + row + i * 16 + half * 8 + lane / 4, c = first_column + column + j * 8 + lane % 4 * 2;
                if (r < M && c < N) {
                    *reinterpret_cast<__nv_bfloat162*>(out + (long long)r * N + c) =
                        __floats2bfloat162_rn(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
                }
            }
        }
    }
}
