// Sums of a warpgroup on their way to global memory: written to tiles in shared memory, which the TMA stores while the
// next is worked out (sm_90 and later). A tile is 128 bytes wide, as the swizzle's pattern is.
#pragma once

#include "common/hopper.cuh"
#include "common/matrix.cuh"
#include "common/named_barrier.cuh"
#include "common/reduce.cuh"
#include "common/swizzle.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// Tiles of LINES lines of 64 16-bit elements, taken in turns. All threads of the group call, in the same order.
template <typename T, int LINES, int TILES>
struct Outbox {
    static constexpr int GROUP = 128;            // threads
    static constexpr int TILE = LINES * 64;      // elements
    static constexpr int TILE_BYTES = TILE * 2;

    T* tiles;     // TILES of them, aligned to 1024 bytes
    int barrier;  // a named one of this group's
    int used = 0;

    __device__ bool leads() const { return threadIdx.x % GROUP == 0; }
    __device__ T* tile(int ahead = 0) const { return tiles + (used + ahead) % TILES * TILE; }

    // The next tile, whose last store has read it.
    __device__ T* claim() {
        if (leads()) wait_stores_read<TILES - 1>();
        named_barrier(barrier, GROUP);
        return tile();
    }

    // Stores the tile to column x and row y of the map's matrix.
    __device__ void send(const TensorMap* map, int x, int y) {
        fence_shared();
        named_barrier(barrier, GROUP);
        if (leads()) {
            store_tile(map, x, y, tile());
            close_stores();
        }
        used++;
    }

    // Where this lane's row of the four matrices lies that are 16 lines from `line` on by two pieces from `piece` on.
    __device__ static T* matrices(T* tile, int line, int piece) {
        return tile + swizzled<8>(line + lane_id() % 16, piece + lane_id() / 16) * 8;
    }
};

#endif
