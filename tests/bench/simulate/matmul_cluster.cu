// matmul_wgmma.cu for clusters of two blocks, one above the other: they need the same tile of b, of which each loads a half
// for both. A stage is free when the consumers of both have read it. A test kernel: test_clusters.py breaks its lines.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/hopper.cuh"

using bf16 = __nv_bfloat16;
constexpr int ROWS = 128, COLUMNS = 128, DEPTH = 64, STAGES = 3;
constexpr int GROUP = 128, CONSUMERS = 2, THREADS = GROUP * (1 + CONSUMERS);
constexpr int TILE = ROWS * DEPTH, TILE_BYTES = TILE * 2;
constexpr int ATOM = 8 * DEPTH * 2;  // bytes of 8 lines of 128 bytes, after which the swizzle repeats

// The barriers lie behind the tiles, so that the tiles begin where the swizzle's pattern does.
extern "C" __global__ void __cluster_dims__(1, 2, 1) __launch_bounds__(THREADS)
    matmul_cluster(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap out, int K) {
    extern __shared__ __align__(1024) bf16 tiles[];
    bf16 *a_tiles = tiles, *b_tiles = tiles + STAGES * TILE, *out_tiles = tiles + 2 * STAGES * TILE;
    Barrier* full = reinterpret_cast<Barrier*>(out_tiles + ROWS * COLUMNS);
    Barrier* empty = full + STAGES;
    const int group = threadIdx.x / GROUP, t = threadIdx.x % GROUP;
    const int first_row = blockIdx.y * ROWS, first_column = blockIdx.x * COLUMNS, steps = (K + DEPTH - 1) / DEPTH;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            make_barrier(&full[s], 1);
            make_barrier(&empty[s], 2 * CONSUMERS);
        }
        fence_barriers();
    }
    sync_cluster();
    const int half_tile = block_rank() * TILE / 2, half_rows = block_rank() * COLUMNS / 2;

    if (group == 0) {
        give_registers_back<40>();
        if (t == 0) {
            for (int step = 0; step < steps; step++) {
                int s = step % STAGES, round = step / STAGES;
                if (round > 0) wait_phase(&empty[s], (round - 1) % 2);
                arrive_expecting(&full[s], 2 * TILE_BYTES);
                load_tile(a_tiles + s * TILE, &a, step * DEPTH, first_row, &full[s]);
                load_tile_in_blocks(0b11, b_tiles + s * TILE + half_tile, &b, step * DEPTH, first_column + half_rows, &full[s]);
            }
        }
    } else {
        take_registers<232>();
        const int part = group - 1, row = part * 64;  // rows of the tile that are this group's
        float sums[COLUMNS / 2] = {};
        for (int step = 0; step < steps; step++) {
            int s = step % STAGES;
            wait_phase(&full[s], step / STAGES % 2);
            begin_products();
#pragma unroll
            for (int k = 0; k < DEPTH / 16; k++) {
                warpgroup_multiply_add<bf16, COLUMNS>(sums, matrix_descriptor(a_tiles + s * TILE + row * DEPTH + k * 16, 16, ATOM),
                                                      matrix_descriptor(b_tiles + s * TILE + k * 16, 16, ATOM));
            }
            close_products();
            wait_products<0>();
            if (t < 2) arrive_in_block(&empty[s], t);
        }
        bf16* mine = out_tiles + row * COLUMNS;
        const int lane = t % 32, warp = t / 32;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
            for (int half = 0; half < 2; half++) {
                int r = warp * 16 + half * 8 + lane / 4, c = j * 8 + lane % 4 * 2;
                *reinterpret_cast<__nv_bfloat162*>(mine + r * COLUMNS + c) =
                    __floats2bfloat162_rn(sums[j * 4 + half * 2], sums[j * 4 + half * 2 + 1]);
            }
        }
        fence_shared();
        asm volatile("bar.sync %0, 128;" ::"r"(1 + part) : "memory");
        if (t == 0) {
            store_tile(&out, first_column, first_row + row, mine);
            close_stores();
            wait_stores_read<0>();
        }
    }
    sync_cluster();  // a block's memory is there until the other has arrived for the last time
}
