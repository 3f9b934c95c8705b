#include "common/gelu.cuh"
#include "common/hopper.cuh"
#include "common/operands.cuh"
#include "common/outbox.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"
#include "common/ring.cuh"
#include "common/swizzle.cuh"
#include "common/tile_order.cuh"

constexpr int TILE = 128;   // rows, and columns, of the result that a consumer works out at a time
constexpr int DEPTH = 64;   // of the inner dimension, the one summed over, in a stage
constexpr int STAGES = 5;
constexpr int HALF = 64;    // elements of a line of 128 bytes; rows that a product has; columns of an outbox's tile
constexpr int GROUP = 128;  // threads of a warpgroup: a producer, of which one thread works, and the consumers
constexpr int CONSUMERS = 2, THREADS = GROUP * (1 + CONSUMERS);
constexpr int OPERAND = TILE * DEPTH, OPERAND_BYTES = 2 * OPERAND;  // of one operand in a stage
constexpr int EIGHT_LINES = 8 * 128;   // bytes, after which the swizzle repeats
constexpr int BOX_BYTES = DEPTH * 128; // of an operand that does not lie along the inner dimension, which has two boxes
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

using Sums = float[2][TILE / 2];  // of a thread: two products of 64 rows

template <typename T>
struct Shared {
    T stages[STAGES][2][OPERAND];
    T outboxes[CONSUMERS][2][TILE * HALF];
    Ring<STAGES> ring;
    Barrier beside[CONSUMERS];   // of what a consumer needs beside its products
    Barrier started[CONSUMERS];  // ends a phase when a consumer has started the last product of an item
};

// What is worked out: results of rows x columns, each the sum of `part_inners` products, for each part of the inner
// dimension. Items are tiles of results; block b takes every gridDim.x-th from the b-th on, and its consumers in turns.
struct Work {
    int rows, columns, inners, part_inners;

    struct Item {
        TilePlace tile;
        int part, begin, steps;
    };

    __device__ int tiles() const { return (rows + TILE - 1) / TILE * ((columns + TILE - 1) / TILE); }
    __device__ int items() const { return tiles() * ((inners + part_inners - 1) / part_inners); }
    __device__ Item item(int number) const {
        int part = number / tiles(), begin = part * part_inners, end = min(begin + part_inners, inners);
        return {tile_place<TILE, TILE>(number % tiles(), rows, columns), part, begin, (end - begin + DEPTH - 1) / DEPTH};
    }
};

// An operand as it lies in a stage: 128 lines along the inner dimension, or two boxes of 64 lines along the outer one.
template <bool ALONG_INNER>
struct Operand {
    template <typename T>
    __device__ static void load(T* to, const TensorMap* map, int outer, int inner, Barrier* full) {
        if constexpr (ALONG_INNER) {
            load_tile(to, map, inner, outer, full);
        } else {
            load_tile(to, map, outer, inner, full);
            load_tile(to + OPERAND / 2, map, outer + HALF, inner, full);
        }
    }

    // From outer index `outer`, a multiple of 64, and the k-th 16 of the inner ones on.
    template <typename T>
    __device__ static unsigned long long descriptor(const T* tile, int outer, int k) {
        if constexpr (ALONG_INNER) return matrix_descriptor(tile + outer * DEPTH + k * 16, 16, EIGHT_LINES);
        else return matrix_descriptor(tile + outer * DEPTH + k * 16 * HALF, BOX_BYTES, EIGHT_LINES);
    }
};

// All of a kernel but the way out. One thread has tiles copied into the ring of stages, in the order of items. Each
// consumer multiplies every second item, and begins when the other has started its last product: while one finishes its
// result, the other has the tensor cores for itself.
// begin(consumer, item) comes before the products, also(consumer, item, a's tile) beside those of each stage, and
// finish(consumer, item, sums) after them.
template <typename T, bool A_ALONG, bool B_ALONG, typename Begin, typename Also, typename Finish>
__device__ void run(const TensorMap* a, const TensorMap* b, const Work& work, Begin begin, Also also, Finish finish) {
    extern __shared__ __align__(1024) unsigned char shared_memory[];
    Shared<T>& shared = *reinterpret_cast<Shared<T>*>(shared_memory);
    Ring<STAGES>& ring = shared.ring;
    if (threadIdx.x == 0) {
        ring.make(GROUP / WARP);
        for (int c = 0; c < CONSUMERS; c++) {
            make_barrier(&shared.beside[c], 1);
            make_barrier(&shared.started[c], GROUP / WARP);
        }
        fence_barriers();
    }
    __syncthreads();
    const int group = threadIdx.x / GROUP, items = work.items();
    int n = 0;  // stages used
    if (group == CONSUMERS) {
        give_registers_back<PRODUCER_REGISTERS>();
        if (threadIdx.x % GROUP) return;
        for (int number = blockIdx.x; number < items; number += gridDim.x) {
            const Work::Item item = work.item(number);
            for (int step = 0; step < item.steps; step++, n++) {
                auto& stage = shared.stages[ring.stage(n)];
                const int inner = item.begin + step * DEPTH;
                ring.fill(n, 2 * OPERAND_BYTES);
                Operand<A_ALONG>::load(stage[0], a, item.tile.row, inner, ring.full(n));
                Operand<B_ALONG>::load(stage[1], b, item.tile.column, inner, ring.full(n));
            }
        }
    } else {
        take_registers<CONSUMER_REGISTERS>();
        Outbox<T, TILE, 2> outbox{shared.outboxes[group][0], 1 + group};
        for (int number = blockIdx.x, turn = 0; number < items; number += gridDim.x, turn++) {
            const Work::Item item = work.item(number);
            if (turn % CONSUMERS != group) {
                n += item.steps;
                continue;
            }
            begin(outbox, &shared.beside[group], item);
            Sums sums = {};
            // Who waits for a stage must have seen all but its last use: a phase's parity tells it from its neighbours.
            if (turn > 0) wait_phase(&shared.started[(turn - 1) % CONSUMERS], (turn - 1) / CONSUMERS % 2);
            for (int step = 0; step < item.steps; step++, n++) {
                auto& stage = shared.stages[ring.stage(n)];
                ring.wait(n);
                begin_products();
#pragma unroll
                for (int k = 0; k < DEPTH / 16; k++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        warpgroup_multiply_add<T, TILE, !A_ALONG, !B_ALONG>(
                            sums[half], Operand<A_ALONG>::descriptor(stage[0], half * HALF, k),
                            Operand<B_ALONG>::descriptor(stage[1], 0, k));
                close_products();
                if (step + 1 == item.steps && lane_id() == 0) arrive(&shared.started[group]);
                also(item, stage[0]);
                wait_products<1>();
                __syncwarp();  // of the stage before all lanes have read what they wanted
                if (step > 0 && lane_id() == 0) ring.give_back(n - 1);
            }
            wait_products<0>();
            hold(sums[0]);
            hold(sums[1]);
            __syncwarp();
            if (lane_id() == 0) ring.give_back(n - 1);
            finish(outbox, &shared.beside[group], item, turn / CONSUMERS, sums);
        }
        if (outbox.leads()) wait_stores<0>();
    }
}

// Of the sums of a consumer: the first row of this thread's in half `half`, and its first column of the j-th 8.
__device__ inline int sums_row(int half) { return half * HALF + warp_id() % 4 * 16 + lane_id() / 4; }
__device__ inline int sums_column(int j) { return j * 8 + lane_id() % 4 * 2; }

// 64 columns of the sums, the first or the second, rounded and sent to the map's matrix.
template <typename T>
__device__ void send_half(Outbox<T, TILE, 2>& outbox, T* tile, const Sums& sums, int side, const TensorMap* map,
                          TilePlace place) {
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < HALF / 8; j += 2) {
            unsigned parts[4];
            const float* of = sums[half] + (side * HALF / 8 + j) * 4;
#pragma unroll
            for (int p = 0; p < 4; p++) parts[p] = packed_pair<T>(of[p * 2], of[p * 2 + 1]);
            store_matrices(outbox.matrices(tile, half * HALF + warp_id() % 4 * 16, j), parts);
        }
    outbox.send(map, place.column + side * HALF, place.row);
}

// f(sum, other) for the sums, with what `beside` brought to the outbox's tiles: the same places of another matrix.
template <typename T, typename F>
__device__ void with_beside(const Outbox<T, TILE, 2>& outbox, Sums& sums, F f) {
#pragma unroll
    for (int side = 0; side < 2; side++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int j = 0; j < HALF / 8; j += 2) {
                unsigned parts[4];
                float* of = sums[half] + (side * HALF / 8 + j) * 4;
                load_matrices(parts, outbox.matrices(outbox.tile(side), half * HALF + warp_id() % 4 * 16, j));
#pragma unroll
                for (int p = 0; p < 4; p++) {
                    float2 other = unpacked_pair<T>(parts[p]);
                    of[p * 2] = f(of[p * 2], other.x);
                    of[p * 2 + 1] = f(of[p * 2 + 1], other.y);
                }
            }
}

// Has the tile of another matrix brought to the outbox, where the result will be written in its place.
template <typename T>
__device__ void bring_beside(const Outbox<T, TILE, 2>& outbox, Barrier* beside, const TensorMap* map, TilePlace place) {
    if (!outbox.leads()) return;
    wait_stores_read<0>();
    arrive_expecting(beside, 2 * outbox.TILE_BYTES);
    for (int side = 0; side < 2; side++)
        load_tile(outbox.tile(side), map, place.column + side * HALF, place.row, beside);
}

// out = x weight^T (+ bias). Where pre_gelu is wanted, it is that, and out is its GELU.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
    matmul_forward(const __grid_constant__ TensorMap out, const __grid_constant__ TensorMap pre_gelu,
                   const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, const T* bias,
                   int rows, int columns, int inners, bool with_gelu) {
    const Work work{rows, columns, inners, inners};
    auto nothing = [](auto&&...) {};
    run<T, true, true>(
        &x, &weight, work, nothing, nothing,
        [&](Outbox<T, TILE, 2>& outbox, Barrier*, const Work::Item& item, int, Sums& sums) {
            if (bias) {
#pragma unroll
                for (int j = 0; j < TILE / 8; j++) {
                    int column = item.tile.column + sums_column(j);
                    Packed<float, 2> b = column < columns ? load_floats<2>(bias + column) : filled<2>(0);
#pragma unroll
                    for (int half = 0; half < 2; half++)
#pragma unroll
                        for (int e = 0; e < 4; e++) sums[half][j * 4 + e] += b[e % 2];
                }
            }
#pragma unroll
            for (int side = 0; side < 2; side++) {
                if (with_gelu) {
                    send_half(outbox, outbox.claim(), sums, side, &pre_gelu, item.tile);
#pragma unroll
                    for (int half = 0; half < 2; half++)
#pragma unroll
                        for (int e = 0; e < TILE / 4; e++) {
                            float& sum = sums[half][side * (TILE / 4) + e];
                            sum = gelu(sum);
                        }
                }
                send_half(outbox, outbox.claim(), sums, side, &out, item.tile);
            }
        });
}

// dx = dout weight, times gelu'(x_pre_gelu) where x was the GELU of that.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
    matmul_dx(const __grid_constant__ TensorMap dx, const __grid_constant__ TensorMap dout,
              const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap x_pre_gelu, int rows,
              int columns, int inners, bool was_gelu) {
    const Work work{rows, columns, inners, inners};
    run<T, true, false>(
        &dout, &weight, work,
        [&](Outbox<T, TILE, 2>& outbox, Barrier* beside, const Work::Item& item) {
            if (was_gelu) bring_beside(outbox, beside, &x_pre_gelu, item.tile);
        },
        [](auto&&...) {},
        [&](Outbox<T, TILE, 2>& outbox, Barrier* beside, const Work::Item& item, int turn, Sums& sums) {
            if (was_gelu) {
                wait_phase(beside, turn % 2);
                with_beside(outbox, sums, [](float sum, float x) { return sum * gelu_grad(x); });
            }
#pragma unroll
            for (int side = 0; side < 2; side++) send_half(outbox, outbox.claim(), sums, side, &dx, item.tile);
        });
}

// Sums of the columns of dout, from its tiles in the stages. A warp has 32 columns, a lane 8 of them in 8 of the lines.
template <typename T>
struct ColumnSums {
    Packed<float, 8> sums = filled<8>(0);

    __device__ static int piece() { return warp_id() % 4 * 4 + lane_id() % 4; }

    // Lines 4 apart meet in no bank.
    __device__ static int line() { return lane_id() / 4 % 2 * 4 + lane_id() / 8; }

    __device__ void add(const T* tile) {
        const T* box = tile + piece() / 8 * (OPERAND / 2);
#pragma unroll
        for (int l = 0; l < DEPTH; l += 8) {
            Packed<float, 8> more = load_floats<8>(box + swizzled<8>(l + line(), piece() % 8) * 8);
#pragma unroll
            for (int k = 0; k < 8; k++) sums[k] += more[k];
        }
    }

    // to[column …], and begins anew. Two lanes of each piece write four columns each.
    __device__ void write(float* to, int first_column, int columns) {
#pragma unroll
        for (int k = 0; k < 8; k++)
#pragma unroll
            for (int distance = 4; distance < WARP; distance *= 2)
                sums[k] += __shfl_xor_sync(ALL_LANES, sums[k], distance);
        const bool second = lane_id() / 4 % 2;
        Packed<float, 4> mine;
#pragma unroll
        for (int k = 0; k < 4; k++) mine[k] = second ? sums[k + 4] : sums[k];
        const int column = first_column + piece() * 8 + second * 4;
        if (lane_id() < 8 && column < columns) store(to + column, mine);
        sums = filled<8>(0);
    }
};

// dweight = dout^T x, or that added to it. With several parts, each sums its share of the inner dimension into its own
// array of `partials`, and add_parts (shared.cu) does the rest. So it is with dbias, the sums of dout's columns: where
// bias_partials are wanted, who works on the first column of tiles has all of dout at hand.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
    matmul_dweight(const __grid_constant__ TensorMap dweight, float* partials, float* bias_partials,
                   const __grid_constant__ TensorMap dout, const __grid_constant__ TensorMap x, int rows, int columns,
                   int inners, int part_inners, bool accumulate) {
    const Work work{rows, columns, inners, part_inners};
    const bool add = accumulate && !partials;
    ColumnSums<T> column_sums;
    run<T, false, false>(
        &dout, &x, work,
        [&](Outbox<T, TILE, 2>& outbox, Barrier* beside, const Work::Item& item) {
            if (add) bring_beside(outbox, beside, &dweight, item.tile);
        },
        [&](const Work::Item& item, const T* tile) {
            if (bias_partials && item.tile.column == 0) column_sums.add(tile);
        },
        [&](Outbox<T, TILE, 2>& outbox, Barrier* beside, const Work::Item& item, int turn, Sums& sums) {
            if (bias_partials && item.tile.column == 0)
                column_sums.write(bias_partials + item.part * (long long)rows, item.tile.row, rows);
            if (partials) {  // four lanes write a sector: no need of a way through shared memory
                float* to = partials + item.part * (long long)rows * columns;
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int e = 0; e < TILE / 2; e += 2) {
                        int row = item.tile.row + sums_row(half) + e % 4 / 2 * 8;
                        int column = item.tile.column + sums_column(e / 4);
                        if (row < rows && column < columns)
                            store(to + row * (long long)columns + column,
                                  Packed<float, 2>{sums[half][e], sums[half][e + 1]});
                    }
                return;
            }
            if (add) {
                wait_phase(beside, turn % 2);
                with_beside(outbox, sums, [](float sum, float before) { return sum + before; });
            }
#pragma unroll
            for (int side = 0; side < 2; side++) send_half(outbox, outbox.claim(), sums, side, &dweight, item.tile);
        });
}
