// Planted bugs in the use of clusters, one to a kernel, each for a cluster of two: the lines marked with `// BUG` are
// those that the simulator's report must name. `map` is that of a matrix of 32-bit numbers in tiles of 8 x 8.
#include "common/hopper.cuh"

#define KERNEL extern "C" __global__ void
#define ARGUMENTS unsigned *out, const unsigned *in, unsigned *counters, const __grid_constant__ TensorMap map, int n
constexpr int TILE_BYTES = 8 * 8 * 4;

__device__ int place() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ int other() { return block_rank() ^ 1; }
__shared__ unsigned mine[64];
__shared__ __align__(128) unsigned tile[2][64];
__shared__ Barrier full, empty;

// The beginning of right kernels: two barriers for one arrival each, known to both blocks.
__device__ void make_barriers() {
    if (threadIdx.x == 0) {
        make_barrier(&full, 1);
        make_barrier(&empty, 1);
        fence_barriers();
    }
    sync_cluster();
}

KERNEL __cluster_dims__(2, 1, 1) read_without_a_barrier(ARGUMENTS) {
    mine[threadIdx.x] = 0;
    sync_cluster();
    mine[threadIdx.x] = in[place()];                   // BUG
    __syncthreads();
    out[place()] = in_block(mine, other())[threadIdx.x];  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) barrier_of_the_block_alone(ARGUMENTS) {
    mine[threadIdx.x] = 0;
    sync_cluster();
    in_block(mine, other())[threadIdx.x] = in[place()];  // BUG
    __syncthreads();
    out[place()] = mine[threadIdx.x];                    // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) relaxed_arrival(ARGUMENTS) {
    mine[threadIdx.x] = 0;
    sync_cluster();
    mine[threadIdx.x] = in[place()];                     // BUG
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    wait_for_cluster();
    out[place()] = in_block(mine, other())[threadIdx.x];  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) reached_before_it_began(ARGUMENTS) {
    in_block(mine, other())[threadIdx.x] = in[place()];  // BUG
    sync_cluster();
    out[place()] = mine[threadIdx.x];
}
KERNEL __cluster_dims__(2, 1, 1) block_ends_too_early(ARGUMENTS) {
    mine[threadIdx.x] = in[place()];
    sync_cluster();
    if (block_rank() == 0) out[place()] = in_block(mine, 1)[threadIdx.x];  // BUG
}
KERNEL __cluster_dims__(2, 1, 1) block_has_ended(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x) return;
    if (block_rank() == 1) atomicExch(counters, 1);
    if (block_rank() == 1) return;
    while (!atomicAdd(counters, 0)) {
    }
    arrive_in_block(&full, 1);  // BUG
}
KERNEL __cluster_dims__(2, 1, 1) rank_that_is_not_there(ARGUMENTS) {
    mine[threadIdx.x] = in[place()];
    sync_cluster();
    out[place()] = in_block(mine, block_rank() + 1)[threadIdx.x];  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) one_block_skips_the_barrier(ARGUMENTS) {
    make_barriers();
    if (block_rank() == 0) {
        sync_cluster();  // BUG
        if (threadIdx.x == 0) arrive_in_block(&full, 1);
    } else {
        wait_phase(&full, 0);  // BUG
    }
    out[place()] = 0;
}
KERNEL __cluster_dims__(2, 1, 1) arrives_twice(ARGUMENTS) {
    arrive_at_cluster();
    arrive_at_cluster();  // BUG
    wait_for_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) waits_without_an_arrival(ARGUMENTS) {
    wait_for_cluster();  // BUG
    out[place()] = 0;
}
KERNEL __cluster_dims__(2, 1, 1) barrier_for_half_a_warp(ARGUMENTS) {
    if (threadIdx.x < 16) sync_cluster();  // BUG
    __syncthreads();
    out[place()] = 0;
}
KERNEL __cluster_dims__(2, 1, 1) mask_without_the_other(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) {
        arrive_expecting(&full, TILE_BYTES);
        if (block_rank() == 0) load_tile_in_blocks(0b01, tile[0], &map, 0, 0, &full);
    }
    wait_phase(&full, 0);  // BUG
    out[place()] = tile[0][threadIdx.x];
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) mask_of_too_many(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) {
        arrive_expecting(&full, TILE_BYTES);
        if (block_rank() == 0) load_tile_in_blocks(0b111, tile[0], &map, 0, 0, &full);  // BUG
    }
    wait_phase(&full, 0);
    out[place()] = tile[0][threadIdx.x];
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) bytes_not_expected(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) {
        if (block_rank() == 0) arrive_expecting(&full, TILE_BYTES);
        if (block_rank() == 0) load_tile_in_blocks(0b11, tile[0], &map, 0, 0, &full);  // BUG
        if (block_rank() == 1) arrive(&full);
    }
    sync_cluster();
    if (block_rank() == 1) wait_phase(&full, 0);
    out[place()] = tile[0][threadIdx.x];  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) half_of_the_bytes_expected(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) {
        arrive_expecting(&full, TILE_BYTES);  // of two tiles, one from each block
        load_tile_in_blocks(0b11, tile[block_rank()], &map, 0, 0, &full);  // BUG
    }
    sync_cluster();
    wait_phase(&full, 0);
    out[place()] = tile[0][threadIdx.x] + tile[1][threadIdx.x];  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) memory_not_known_to_be_free(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) arrive_expecting(&full, TILE_BYTES);
    if (threadIdx.x == 0 && block_rank() == 0) load_tile_in_blocks(0b11, tile[0], &map, 0, 0, &full);  // BUG
    wait_phase(&full, 0);
    out[place()] = tile[0][threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) arrive_expecting(&full, TILE_BYTES);
    if (threadIdx.x == 0 && block_rank() == 0) load_tile_in_blocks(0b11, tile[0], &map, 8, 0, &full);  // BUG
    wait_phase(&full, 1);
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) freed_before_it_is_read(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) arrive_expecting(&full, TILE_BYTES);
    if (threadIdx.x == 0 && block_rank() == 0) load_tile_in_blocks(0b11, tile[0], &map, 0, 0, &full);
    wait_phase(&full, 0);
    if (threadIdx.x == 0 && block_rank() == 1) arrive_in_block(&empty, 0);
    out[place()] = tile[0][threadIdx.x];  // BUG
    __syncthreads();
    if (threadIdx.x == 0) arrive_expecting(&full, TILE_BYTES);
    if (threadIdx.x == 0 && block_rank() == 0) {
        wait_phase(&empty, 0);
        load_tile_in_blocks(0b11, tile[0], &map, 8, 0, &full);  // BUG
    }
    wait_phase(&full, 1);
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) free_in_the_wrong_block(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) arrive_in_block(&empty, block_rank());  // the other's was meant, and one block waits for two
    wait_phase(&empty, 0);
    if (threadIdx.x == 0 && block_rank() == 0) arrive_in_block(&empty, 0);
    wait_phase(&empty, 1);  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) behind_the_others_memory(ARGUMENTS) {
    mine[threadIdx.x] = in[place()];
    sync_cluster();
    out[place()] = in_block(mine, other())[threadIdx.x + 4096];  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) others_memory_in_the_own_window(ARGUMENTS) {
    mine[threadIdx.x] = in[place()];
    sync_cluster();
    unsigned v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address_in_block(&mine[threadIdx.x], other())) : "memory");  // BUG
    out[place()] = v;
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) others_memory_is_not_written(ARGUMENTS) {
    if (block_rank() == 0) mine[threadIdx.x] = in[place()];
    sync_cluster();
    out[place()] = in_block(mine, other())[threadIdx.x];  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) waits_for_the_others_barrier(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) arrive(&full);
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.b64 p, [%0], 0;\n}" ::"l"(in_block(&full, other())) : "memory");  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) others_barrier_is_not_made(ARGUMENTS) {
    sync_cluster();
    if (threadIdx.x == 0) arrive_in_block(&full, other());  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) barrier_made_too_late(ARGUMENTS) {
    sync_cluster();
    if (threadIdx.x == 0) {
        if (block_rank() == 1) make_barrier(&full, 1);     // BUG
        if (block_rank() == 0) arrive_in_block(&full, 1);  // BUG
    }
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) barrier_beside_the_wrong_memory(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) {
        arrive_expecting(&full, 4);
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(address_in_block(mine, other())), "r"(1), "r"(address_in_block(&full, block_rank())) : "memory");  // BUG
    }
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) store_not_waited_for(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) arrive_expecting(&full, 4 * blockDim.x);
    store_in_block(&mine[threadIdx.x], other(), in[place()], &full);  // BUG
    sync_cluster();
    out[place()] = mine[threadIdx.x];  // BUG
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) sum_without_an_atomic(ARGUMENTS) {
    if (threadIdx.x == 0) mine[0] = 0;
    sync_cluster();
    if (threadIdx.x == 0) *in_block(mine, 0) += 1 + block_rank();  // BUG
    sync_cluster();
    out[place()] = *in_block(mine, 0);
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) sent_without_a_proxy_fence(ARGUMENTS) {
    mine[threadIdx.x] = in[place()];
    make_barriers();
    if (threadIdx.x == 0) {
        arrive_expecting(&full, 256);
        copy_to_block(tile[0], other(), mine, 256, &full);  // BUG
    }
    wait_phase(&full, 0);
    out[place()] = tile[0][threadIdx.x];
    sync_cluster();
}
KERNEL __cluster_dims__(2, 1, 1) flag_of_the_block_alone(ARGUMENTS) {
    if (block_rank() == 0) {
        if (threadIdx.x == 0) {
            out[0] = in[0];  // BUG
            asm volatile("st.release.cta.global.u32 [%0], 1;" ::"l"(counters) : "memory");
        }
    } else if (threadIdx.x == 0) {
        unsigned seen = 0;
        while (!seen) asm volatile("ld.acquire.cta.global.u32 %0, [%1];" : "=r"(seen) : "l"(counters) : "memory");
        out[1] = out[0] + 1;  // BUG
    }
}
KERNEL __cluster_dims__(2, 1, 1) copied_to_a_block_that_may_have_ended(ARGUMENTS) {
    make_barriers();
    if (threadIdx.x == 0) {
        if (block_rank() == 0) arrive_expecting(&full, TILE_BYTES);
        if (block_rank() == 0) load_tile_in_blocks(0b11, tile[0], &map, 0, 0, &full);  // BUG
    }
    if (block_rank() == 0) wait_phase(&full, 0);
}
