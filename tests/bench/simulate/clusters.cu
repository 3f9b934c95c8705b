// Kernels for clusters of several blocks, whose answers test_clusters.py works out. Launches say the cluster's size,
// but where a kernel does. `n` is what the kernel says; `map` is that of a matrix of 32-bit numbers in tiles of 8 x 8.
#include <cooperative_groups.h>

#include "common/hopper.cuh"

#ifdef CLUSTER  // on a card, where launches do not say it
#define KERNEL extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1)
#else
#define KERNEL extern "C" __global__ void
#endif
#define ARGUMENTS unsigned *out, const unsigned *in, unsigned *counters, const __grid_constant__ TensorMap map, int n
constexpr int TILE = 8, TILE_BYTES = TILE * TILE * 4, MOST_BLOCKS = 16;

__device__ int block_of_grid() { return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z); }
__device__ int place() { return block_of_grid() * blockDim.x + threadIdx.x; }

#define READ(name) \
    [] { unsigned v; asm volatile("mov.u32 %0, %%" name ";" : "=r"(v)); return v; }()

// Where a block is in its cluster, and where that is.
KERNEL registers(ARGUMENTS) {
    unsigned explicit_cluster;
    asm volatile("{\n.reg .pred p;\nmov.pred p, %%is_explicit_cluster;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(explicit_cluster));
    unsigned found[16] = {READ("cluster_ctaid.x"), READ("cluster_ctaid.y"), READ("cluster_ctaid.z"), READ("cluster_nctaid.x"),
                          READ("cluster_nctaid.y"), READ("cluster_nctaid.z"), READ("clusterid.x"), READ("clusterid.y"),
                          READ("clusterid.z"), READ("nclusterid.x"), READ("nclusterid.y"), READ("nclusterid.z"),
                          READ("cluster_ctarank"), READ("cluster_nctarank"), explicit_cluster, READ("aggr_smem_size")};
    if (threadIdx.x == 0)
        for (int i = 0; i < 16; i++) out[block_of_grid() * 16 + i] = found[i];
}

// A kernel that says its cluster's size: each block answers what its neighbour was given.
extern "C" __global__ void __cluster_dims__(2, 1, 1) swapped(ARGUMENTS) {
    __shared__ unsigned mine[256];
    mine[threadIdx.x] = in[place()];
    sync_cluster();
    out[place()] = in_block(mine, block_rank() ^ 1)[threadIdx.x];
    sync_cluster();
}

// The sum over all blocks of the cluster, read from their memory; what lies between the barrier's halves is the block's own.
KERNEL summed(ARGUMENTS) {
    __shared__ unsigned mine[256];
    mine[threadIdx.x] = in[place()];
    arrive_at_cluster();
    unsigned sum = 0;
    wait_for_cluster();
    for (int rank = 0; rank < blocks_of_cluster(); rank++) sum += in_block(mine, rank)[threadIdx.x];
    out[place()] = sum;
    sync_cluster();
}

// A histogram whose bins are spread over the blocks: atomics in each other's memory.
KERNEL histogram(ARGUMENTS) {
    __shared__ unsigned bins[64];
    if (threadIdx.x < 64) bins[threadIdx.x] = 0;
    sync_cluster();
    unsigned bin = in[place()] % (64 * blocks_of_cluster()), old;
    unsigned there = address_in_block(&bins[bin % 64], bin / 64);
    asm volatile("atom.relaxed.cluster.shared::cluster.add.u32 %0, [%1], 1;" : "=r"(old) : "r"(there) : "memory");
    sync_cluster();
    if (threadIdx.x < 64) out[block_of_grid() * 64 + threadIdx.x] = bins[threadIdx.x];
    sync_cluster();
    asm volatile("red.relaxed.cluster.shared::cluster.max.u32 [%0], %1;" ::"r"(address_in_block(&bins[0], 0)), "r"(old) : "memory");
    sync_cluster();
}

// Vectors written to the next block, and read from the one before last.
KERNEL vectors(ARGUMENTS) {
    __shared__ __align__(16) unsigned mine[4 * 64];
    int blocks = blocks_of_cluster(), rank = block_rank();
    unsigned a = in[place()], b[4];
    sync_cluster();
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address_in_block(&mine[4 * threadIdx.x], (rank + 1) % blocks)),
                 "r"(a), "r"(a + 1), "r"(a + 2), "r"(a + 3) : "memory");
    sync_cluster();
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(address_in_block(&mine[4 * threadIdx.x], (rank + blocks - 1) % blocks)) : "memory");
    for (int i = 0; i < 4; i++) out[4 * place() + i] = b[i];
    sync_cluster();
}

// Asynchronous stores to the next block, which waits for their bytes.
KERNEL stored_async(ARGUMENTS) {
    __shared__ __align__(16) unsigned mine[8 * 64];
    __shared__ Barrier barrier;
    int next = (block_rank() + 1) % blocks_of_cluster();
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        fence_barriers();
        arrive_expecting(&barrier, 32 * blockDim.x);
    }
    sync_cluster();
    unsigned a = in[place()], to = address_in_block(&mine[8 * threadIdx.x], next), there = address_in_block(&barrier, next);
    store_in_block(&mine[8 * threadIdx.x], next, a, &barrier);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to + 4), "f"(__uint_as_float(a + 1)), "r"(there) : "memory");
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to + 8), "r"(a + 2), "r"(a + 3), "r"(there) : "memory");
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to + 16), "r"(a + 4), "r"(a + 5), "r"(a + 6), "r"(a + 7), "r"(there) : "memory");
    wait_phase(&barrier, 0);
    for (int i = 0; i < 8; i++) out[8 * place() + i] = mine[8 * threadIdx.x + i];
    sync_cluster();
}

// Asynchronous reductions into the memory of rank 0, by all.
KERNEL reduced_async(ARGUMENTS) {
    __shared__ __align__(16) unsigned long long wide;
    __shared__ unsigned sums[8];
    __shared__ Barrier barrier;
    if (threadIdx.x < 8) sums[threadIdx.x] = threadIdx.x == 4 ? ~0u : threadIdx.x == 2 ? 1000 : 0;
    if (threadIdx.x == 0) {
        wide = 0;
        make_barrier(&barrier, 1);
        fence_barriers();
        arrive_expecting(&barrier, block_rank() == 0 ? 36 * blockDim.x * blocks_of_cluster() : 0);
    }
    sync_cluster();
    unsigned a = in[place()], to = address_in_block(sums, 0), there = address_in_block(&barrier, 0);
#define REDUCE(kind, i) \
    asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes." kind " [%0], %1, [%2];" ::"r"(to + 4 * i), "r"(a), "r"(there) : "memory")
    REDUCE("add.u32", 0);
    REDUCE("max.u32", 1);
    REDUCE("min.s32", 2);
    REDUCE("or.b32", 3);
    REDUCE("and.b32", 4);
    REDUCE("xor.b32", 5);
    REDUCE("inc.u32", 6);
    asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u64 [%0], %1, [%2];" ::"r"(address_in_block(&wide, 0)),
                 "l"((unsigned long long)a << 20), "r"(there) : "memory");
    if (block_rank() == 0) {
        wait_phase(&barrier, 0);
        if (threadIdx.x < 7) out[10 * (block_of_grid() / blocks_of_cluster()) + threadIdx.x] = sums[threadIdx.x];
        if (threadIdx.x == 7) memcpy(&out[10 * (block_of_grid() / blocks_of_cluster()) + 8], &wide, 8);
    }
    sync_cluster();
}

// Each block loads one tile and gives it to all, again and again into the same memory: full and empty barriers, as in
// a product whose blocks share operands. `n` rounds; a block answers the sum of what it saw, by place in the tile.
KERNEL multicast(ARGUMENTS) {
    __shared__ __align__(128) unsigned tiles[MOST_BLOCKS][TILE * TILE];
    __shared__ Barrier full, empty;
    int blocks = blocks_of_cluster(), rank = block_rank();
    if (threadIdx.x == 0) {
        make_barrier(&full, 1);
        make_barrier(&empty, blocks);
        fence_barriers();
    }
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    unsigned sum = 0;
    for (int round = 0; round < n; round++) {
        if (threadIdx.x == 0) {
            if (round) wait_phase(&empty, (round - 1) & 1);
            arrive_expecting(&full, TILE_BYTES * blocks);
            load_tile_in_blocks((1u << blocks) - 1, tiles[rank], &map, TILE * round, TILE * rank, &full);
        }
        wait_phase(&full, round & 1);
        for (int i = 0; i < blocks; i++) sum += tiles[i][threadIdx.x];
        __syncthreads();
        if (threadIdx.x < blocks) arrive_in_block(&empty, threadIdx.x);
    }
    out[place()] = sum;
    sync_cluster();
}

// The same for one round, with words for the cache; each thread's own number goes through memory besides.
KERNEL hinted(ARGUMENTS) {
    __shared__ __align__(128) unsigned tile[TILE * TILE];
    __shared__ Barrier full;
    if (threadIdx.x == 0) make_barrier(&full, 1);
    sync_cluster();
    unsigned long long keep, drop;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(keep));
    asm volatile("createpolicy.fractional.L2::evict_first.L2::evict_unchanged.b64 %0, 0.5;" : "=l"(drop));
    if (threadIdx.x == 0) {
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], 256;" ::"l"(in) : "memory");
        asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map), "r"(0), "r"(0) : "memory");
        arrive_expecting(&full, TILE_BYTES);
        if (block_rank() == 0)
            asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(
                             shared_address(tile)), "l"(&map), "r"(0), "r"(0), "r"(shared_address(&full)), "h"((unsigned short)((1 << blocks_of_cluster()) - 1)), "l"(keep) : "memory");
    }
    unsigned v, w;
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(v) : "l"(in + place()), "l"(drop) : "memory");
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(w) : "l"(in + place()), "l"(drop));
    wait_phase(&full, 0);
    asm volatile("st.global.L2::cache_hint.u32 [%0], %1, %2;" ::"l"(out + place()), "r"(v + w + tile[threadIdx.x]), "l"(drop) : "memory");
    sync_cluster();
}

// The first block copies its bytes to those of the mask `n`; the others wait for nothing.
KERNEL bytes_multicast(ARGUMENTS) {
    __shared__ __align__(16) unsigned mine[64];
    __shared__ Barrier barrier;
    mine[threadIdx.x] = 7;
    if (threadIdx.x == 0) make_barrier(&barrier, 1);
    sync_cluster();
    bool takes = n >> block_rank() & 1;
    if (threadIdx.x == 0 && takes) arrive_expecting(&barrier, 256);
    if (threadIdx.x == 0 && block_rank() == 0)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], 256, [%2], %3;" ::"r"(
                         shared_address(mine)), "l"(in), "r"(shared_address(&barrier)), "h"((unsigned short)n) : "memory");
    if (takes) wait_phase(&barrier, 0);
    out[place()] = mine[threadIdx.x];
    sync_cluster();
}

// Bytes from one block's shared memory into the next one's, stored, and added.
KERNEL sent(ARGUMENTS) {
    __shared__ __align__(16) unsigned from[64], to[64], sums[64];
    __shared__ Barrier barrier;
    int next = (block_rank() + 1) % blocks_of_cluster();
    from[threadIdx.x] = in[place()];
    sums[threadIdx.x] = 5;
    fence_shared();
    if (threadIdx.x == 0) {
        make_barrier(&barrier, 1);
        arrive_expecting(&barrier, 512);
    }
    sync_cluster();
    if (threadIdx.x == 0) {
        copy_to_block(to, next, from, 256, &barrier);
        asm volatile("cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32 [%0], [%1], 256, [%2];" ::"r"(
                         address_in_block(sums, next)), "r"(shared_address(from)), "r"(address_in_block(&barrier, next)) : "memory");
    }
    wait_phase(&barrier, 0);
    out[2 * place()] = to[threadIdx.x];
    out[2 * place() + 1] = sums[threadIdx.x];
    sync_cluster();
}

// A bulk load by one block into another's memory, whose mbarrier is told by hand how much is to come.
KERNEL loaded_for_another(ARGUMENTS) {
    __shared__ __align__(16) unsigned mine[64];
    __shared__ Barrier barrier;
    int next = (block_rank() + 1) % blocks_of_cluster();
    if (threadIdx.x == 0) make_barrier(&barrier, 2);
    sync_cluster();
    if (threadIdx.x == 0) {
        unsigned there = address_in_block(&barrier, next);
        asm volatile("mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [%0], 256;" ::"r"(there) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 256, [%2];" ::"r"(address_in_block(mine, next)),
                     "l"(in + 64 * block_of_grid()), "r"(there) : "memory");
        asm volatile("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], 16;" ::"r"(there) : "memory");
        asm volatile("mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%0], 16;" ::"r"(there) : "memory");
        arrive(&barrier);
    }
    wait_phase(&barrier, 0);
    out[place()] = mine[threadIdx.x];
    sync_cluster();
}

// Addresses of the cluster's window and generic ones, there and back.
KERNEL addresses(ARGUMENTS) {
    __shared__ unsigned mine[4];
    if (threadIdx.x < 4) mine[threadIdx.x] = 100 * block_rank() + threadIdx.x;
    sync_cluster();
    int other = blocks_of_cluster() - 1 - block_rank();
    unsigned there = address_in_block(&mine[2], other), rank, generic_rank, is_in, is_own, wide_rank;
    unsigned long long generic, back, wide;
    asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(rank) : "r"(there));
    asm volatile("cvta.shared::cluster.u64 %0, %1;" : "=l"(generic) : "l"((unsigned long long)there));
    asm volatile("getctarank.u64 %0, %1;" : "=r"(generic_rank) : "l"(generic));
    asm volatile("cvta.to.shared::cluster.u64 %0, %1;" : "=l"(back) : "l"(generic));
    asm volatile("mapa.shared::cluster.u64 %0, %1, %2;" : "=l"(wide) : "l"(back), "r"(0));
    asm volatile("getctarank.shared::cluster.u64 %0, %1;" : "=r"(wide_rank) : "l"(wide));
    asm volatile("{\n.reg .pred p;\nisspacep.shared::cluster p, %1;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(is_in) : "l"(generic));
    asm volatile("{\n.reg .pred p;\nisspacep.shared::cta p, %1;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(is_own) : "l"(generic));
    unsigned found[8] = {rank, generic_rank, is_in, is_own, *(unsigned*)generic, back == there, wide_rank, in_block(mine, other)[3]};
    if (threadIdx.x == 0)
        for (int i = 0; i < 8; i++) out[8 * block_of_grid() + i] = found[i];
    sync_cluster();
}

// The same sum by cooperative groups.
KERNEL by_groups(ARGUMENTS) {
    namespace cg = cooperative_groups;
    __shared__ unsigned mine[256];
    cg::cluster_group cluster = cg::this_cluster();
    mine[threadIdx.x] = in[place()];
    cluster.sync();
    unsigned sum = 0;
    for (unsigned rank = 0; rank < cluster.num_blocks(); rank++) sum += cluster.map_shared_rank(mine, rank)[threadIdx.x];
    out[place()] = sum + cluster.block_rank();
    cluster.sync();
}

// Global memory handed over within the cluster: by its barrier, and by a flag of its scope.
KERNEL through_global(ARGUMENTS) {
    int blocks = blocks_of_cluster(), rank = block_rank(), first = block_of_grid() - rank;
    unsigned* mine = out + gridDim.x * blockDim.x + place();
    *mine = in[place()];
    sync_cluster();
    unsigned sum = 0;
    for (int i = 0; i < blocks; i++) sum += out[gridDim.x * blockDim.x + (first + i) * blockDim.x + threadIdx.x];
    sync_cluster();
    unsigned* flag = counters + first;
    if (rank == 0) {
        out[first * blockDim.x + threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.x == 0) asm volatile("fence.acq_rel.cluster;\nst.relaxed.cluster.global.u32 [%0], 1;" ::"l"(flag) : "memory");
    } else {
        if (threadIdx.x == 0) {
            unsigned seen = 0;
            while (!seen) asm volatile("ld.acquire.cluster.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        }
        __syncthreads();
        out[place()] = out[first * blockDim.x + threadIdx.x] + rank;
    }
}

// The clusters' sums, and the last cluster of the grid adds them up: what its first block hears of the others it heard
// from their first blocks, and those from theirs by the cluster's barrier.
KERNEL last_adds(ARGUMENTS) {
    __shared__ unsigned is_last;
    int blocks = blocks_of_cluster(), rank = block_rank();
    unsigned* partial = out + blockDim.x;
    partial[place()] = in[place()];
    sync_cluster();
    if (rank == 0) {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) is_last = atomicAdd(counters, 1) == gridDim.x / blocks - 1;
        __syncthreads();
        if (is_last) {
            __threadfence();
            unsigned sum = 0;
            for (int i = 0; i < gridDim.x; i++) sum += partial[i * blockDim.x + threadIdx.x];
            out[threadIdx.x] = sum;
        }
    }
}

// A ring: each block hands a number on when the one before has, by arrivals at each other's barriers alone.
KERNEL ring(ARGUMENTS) {
    __shared__ unsigned number;
    __shared__ Barrier barrier;
    int blocks = blocks_of_cluster(), rank = block_rank();
    if (threadIdx.x == 0) make_barrier(&barrier, 1);
    if (threadIdx.x == 0) number = 0;
    sync_cluster();
    if (threadIdx.x == 0) {
        if (rank) wait_phase(&barrier, 0);
        number += in[place()];
        if (rank + 1 < blocks) {
            *in_block(&number, rank + 1) = number;
            arrive_in_block(&barrier, rank + 1);
        }
        out[block_of_grid()] = number;
    }
    sync_cluster();
}

// Data and a flag in the same block's memory, in the other's (set from outside) or the own (seen from outside).
__device__ void hand_over(unsigned* out, const unsigned* in, bool from_outside) {
    __shared__ unsigned data[64], flag;
    int other = block_rank() ^ 1;
    if (threadIdx.x == 0) flag = 0;
    sync_cluster();
    unsigned flags = address_in_block(&flag, from_outside ? other : block_rank()), seen = 0;
    unsigned asked = address_in_block(&flag, from_outside ? block_rank() : other);
    (from_outside ? in_block(data, other) : data)[threadIdx.x] = in[place()];
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("st.release.cluster.shared::cluster.u32 [%0], 1;" ::"r"(flags) : "memory");
    if (threadIdx.x == 0)
        while (!seen) asm volatile("ld.acquire.cluster.shared::cluster.u32 %0, [%1];" : "=r"(seen) : "r"(asked) : "memory");
    __syncthreads();
    out[place()] = (from_outside ? data : in_block(data, other))[threadIdx.x];
    sync_cluster();
}
KERNEL flags_set_from_outside(ARGUMENTS) { hand_over(out, in, true); }
KERNEL flags_seen_from_outside(ARGUMENTS) { hand_over(out, in, false); }

// Threads that return early are not waited for.
KERNEL some_return(ARGUMENTS) {
    __shared__ unsigned mine[64];
    mine[threadIdx.x] = in[place()];
    if (threadIdx.x >= n) return;
    sync_cluster();
    out[place()] = in_block(mine, 0)[threadIdx.x];
    sync_cluster();
}
