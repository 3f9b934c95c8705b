#include "common/hopper.cuh"
#include "common/math.cuh"
#include "common/matrix.cuh"
#include "common/named_barrier.cuh"
#include "common/operands.cuh"
#include "common/reduce.cuh"
#include "common/ring.cuh"
#include "common/swizzle.cuh"

constexpr int LINE = 64;     // elements of a line of 128 bytes, as wide as TMA's swizzle: a wider head has two boxes
constexpr int GROUP = 128;   // threads of a warpgroup: a producer, of which one thread works, and the consumers
constexpr int CONSUMERS = 2, THREADS = GROUP * (1 + CONSUMERS);
constexpr int OWN = 64;      // queries of a consumer: the rows that a product has
constexpr int QUERIES = CONSUMERS * OWN, KEYS = 128;  // of a block, and of a tile that it walks over
constexpr int STRIP = 16;                             // what a product sums over
constexpr int EIGHT_LINES = 8 * 128;                  // bytes, after which the swizzle repeats
constexpr int BOX = KEYS * LINE, BOX_BYTES = 2 * BOX; // of q, k or v: 128 lines
constexpr int SECTION = 64;                           // heads whose tiles are worked on together: they stay in L2
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
constexpr int TURNS = 1, OUTBOXES = TURNS + CONSUMERS;  // named barriers, one for each consumer

static_assert(QUERIES == KEYS, "only a row of tiles' last one is masked, and has the boxes of the others");

template <int HS>
constexpr int BOXES = HS / LINE;
template <int HS>
constexpr int STAGES = HS == 64 ? 4 : 2;  // of k and of v; q has half as many, as it is read once a row of tiles

template <typename T, int HS>
struct Shared {
    T q[STAGES<HS> / 2][BOXES<HS>][BOX];
    T k[STAGES<HS>][BOXES<HS>][BOX];
    T v[STAGES<HS>][BOXES<HS>][BOX];
    T out[CONSUMERS][BOXES<HS>][OWN * LINE];
    Ring<STAGES<HS> / 2> queries;
    Ring<STAGES<HS>> keys, values;
};

// What is worked out: tiles of queries of the heads, each against all tiles of keys that it sees, from the last one on.
// Block b takes every gridDim.x-th item from the b-th on. Section by section: in it first those tiles of all its heads
// that see most keys.
struct Work {
    int heads, tokens, NH, NKV;
    bool causal;

    struct Item {
        int row;                      // of all heads of the batch
        int batch, head, kv_head;
        int first_query, steps;       // tiles of keys
        __device__ int first_key(int step) const { return (steps - 1 - step) * KEYS; }
    };

    __device__ int tiles() const { return (tokens + QUERIES - 1) / QUERIES; }
    __device__ int items() const { return heads * tiles(); }
    __device__ Item item(int number) const {
        const int first = number / (SECTION * tiles()) * SECTION, size = min(heads - first, SECTION);
        const int rest = number - first * tiles(), row = first + rest % size, tile = tiles() - 1 - rest / size;
        return {row, row / NH, row % NH, row % NH / (NH / NKV), tile * QUERIES, causal ? tile + 1 : tiles()};
    }
};

// ---- products ------------------------------------------------------------------------------------------------------

// scores = q k^T: of 64 queries from line `first` on, and a tile of keys.
template <int HS, typename T>
__device__ void multiply_keys(float (&scores)[KEYS / 2], const T (&q)[BOXES<HS>][BOX], int first,
                              const T (&k)[BOXES<HS>][BOX]) {
#pragma unroll
    for (int d = 0; d < HS; d += STRIP)
        warpgroup_multiply_add<T, KEYS>(
            scores, matrix_descriptor(q[d / LINE] + first * LINE + d % LINE, 16, EIGHT_LINES),
            matrix_descriptor(k[d / LINE] + d % LINE, 16, EIGHT_LINES), d > 0);
}

// sums += p v
template <int HS, typename T>
__device__ void add_values(float (&sums)[HS / 2], const unsigned (&p)[KEYS / STRIP][4],
                           const T (&v)[BOXES<HS>][BOX]) {
#pragma unroll
    for (int i = 0; i < KEYS / STRIP; i++)
        warpgroup_multiply_add<T, HS, true>(sums, p[i],
                                            matrix_descriptor(v[0] + i * STRIP * LINE, BOX_BYTES, EIGHT_LINES));
}

// ---- the running softmax -------------------------------------------------------------------------------------------

// Of a tile's scores of a warpgroup: this lane's first row, of its consumer's, and column. Elements e = 2, 3 of four lie
// 8 rows below, the j-th four 8 j columns to the right, every second one column.
__device__ inline int own_row() { return warp_id() % 4 * STRIP + lane_id() / 4; }
__device__ inline int own_column() { return lane_id() % 4 * 2; }

// Over the four lanes that share a row; each gets the result.
template <typename Combine>
__device__ float row_reduce(float value, Combine combine) {
    value = combine(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return combine(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// Keeps a branch that is seldom taken a branch: else all of it is worked out each time and selected from.
__device__ inline void seldom() { asm volatile(""); }

// Scores become exp2(scale2 score - offset), with which they are told apart from their row's largest by one
// multiply-add. Its rounding is the same for the whole row, and of no account; but far away from 0 it is larger than
// what exp2 can take, and there the largest is subtracted first.
constexpr float FAR = 1024;

// Sums are scaled anew when a row's largest has grown by more than this, in powers of two: until then probabilities
// lie above 1, by no more than 16 bits can hold, and nothing is lost.
constexpr float SLACK = 8;

// Two rows of a lane, 8 apart.
struct Softmax {
    float scale, scale2;
    float largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, denominator[2] = {0, 0};
    float correction[2];  // of what was summed before, if it has grown
    bool grown;

    __device__ explicit Softmax(float scale) : scale(scale), scale2(scale * LOG2_E) {}

    // Scores become probabilities, up to the denominator.
    __device__ void take(float (&scores)[KEYS / 2]) {
        float most[2] = {largest[0], largest[1]};
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) most[e / 2 % 2] = fmaxf(most[e / 2 % 2], scores[e]);
        bool more = false, far = false;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            most[half] = row_reduce(most[half], Max{});
            more |= most[half] > largest[half] + SLACK / scale2;
        }
        grown = __any_sync(ALL_LANES, more);
        if (grown) {
            seldom();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                correction[half] = exp2_approx((largest[half] - most[half]) * scale2);
                largest[half] = most[half];
                denominator[half] *= correction[half];
            }
        }
        float offset[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            offset[half] = largest[half] * scale2;
            far |= fabsf(offset[half]) > FAR;
        }
        if (__any_sync(ALL_LANES, far)) {
            seldom();
#pragma unroll
            for (int e = 0; e < KEYS / 2; e++) scores[e] -= largest[e / 2 % 2];
            offset[0] = offset[1] = 0;
        }
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) {
            scores[e] = exp2_approx(fmaf(scores[e], scale2, -offset[e / 2 % 2]));
            denominator[e / 2 % 2] += scores[e];
        }
    }

    // What was summed before the scores that were taken last, scaled as they are.
    template <int COUNT>
    __device__ void rescale(float (&sums)[COUNT]) const {
        if (!grown) return;
        seldom();
#pragma unroll
        for (int e = 0; e < COUNT; e++) sums[e] *= correction[e / 2 % 2];
    }
};

// Those that a query does not see become -infinity: from `visible` on of the lane's first row's.
__device__ inline void mask(float (&scores)[KEYS / 2], int visible, bool causal) {
#pragma unroll
    for (int e = 0; e < KEYS / 2; e++)
        if (e / 4 * 8 + e % 2 >= visible + (causal ? e / 2 % 2 * 8 : 0)) scores[e] = MINUS_INFINITY;
}

template <typename T>
__device__ void to_operands(unsigned (&p)[KEYS / STRIP][4], const float (&scores)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / STRIP; i++)
#pragma unroll
        for (int r = 0; r < 4; r++) p[i][r] = packed_pair<T>(scores[i * 8 + r * 2], scores[i * 8 + r * 2 + 1]);
}

// ---- forward -------------------------------------------------------------------------------------------------------

// One thread has everything copied that the consumers need, in their order, as far ahead as the rings have stages.
template <typename T, int HS>
__device__ void produce(Shared<T, HS>& shared, const Work& work, const TensorMap* q, const TensorMap* k,
                        const TensorMap* v) {
    auto bring = [](auto& ring, auto& stages, int n, const TensorMap* map, int batch, int head, int row) {
        ring.fill(n, BOXES<HS> * BOX_BYTES);
#pragma unroll
        for (int box = 0; box < BOXES<HS>; box++)
            load_tile(stages[ring.stage(n)][box], map, box * LINE, head, row, batch, ring.full(n));
    };
    int n = 0, turn = 0;
    for (int number = blockIdx.x; number < work.items(); number += gridDim.x, turn++) {
        const Work::Item item = work.item(number);
        for (int step = 0; step < item.steps; step++, n++) {
            bring(shared.keys, shared.k, n, k, item.batch, item.kv_head, item.first_key(step));
            if (step == 0) bring(shared.queries, shared.q, turn, q, item.batch, item.head, item.first_query);
            bring(shared.values, shared.v, n, v, item.batch, item.kv_head, item.first_key(step));
        }
    }
}

// Products are started in turns: while one consumer takes exponents, the other has the tensor cores for itself.
template <typename F>
__device__ void in_turn(int group, F start) {
    named_barrier(TURNS + group, THREADS - GROUP);
    start();
    arrive_at_named_barrier(TURNS + (group + 1) % CONSUMERS, THREADS - GROUP);
}

// Every lane of the warp has read what it wanted of the stage, and so has the product.
template <int STAGES>
__device__ void give_back(Ring<STAGES>& ring, int n) {
    __syncwarp();
    if (lane_id() == 0) ring.give_back(n);
}

// The sums, by way of shared memory, to the rows of out; lse from the lanes that have it.
template <typename T, int HS>
__device__ void finish(T (&outbox)[BOXES<HS>][OWN * LINE], int barrier, const TensorMap* out, float* lse,
                       const Work::Item& item, int first_query, int tokens, const Softmax& softmax,
                       const float (&sums)[HS / 2]) {
    const bool leads = threadIdx.x % GROUP == 0;
    float reciprocal[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = first_query + own_row() + half * 8;
        const float sum = row_reduce(softmax.denominator[half], Sum{});
        reciprocal[half] = 1 / sum;
        if (query < tokens && lane_id() % 4 == 0)
            lse[item.row * (long long)tokens + query] = softmax.largest[half] * softmax.scale + logf(sum);
    }
    if (leads) wait_stores_read<0>();
    named_barrier(barrier, GROUP);  // what was sent last is read
#pragma unroll
    for (int j = 0; j < HS / 8; j += 2) {
        unsigned parts[4];
        const float* of = sums + j * 4;
#pragma unroll
        for (int p = 0; p < 4; p++)
            parts[p] = packed_pair<T>(of[p * 2] * reciprocal[p % 2], of[p * 2 + 1] * reciprocal[p % 2]);
        const int line = warp_id() % 4 * STRIP + lane_id() % STRIP, piece = j % 8 + lane_id() / STRIP;
        store_matrices(outbox[j / 8] + swizzled<8>(line, piece) * 8, parts);
    }
    fence_shared();
    named_barrier(barrier, GROUP);
    if (leads && first_query < tokens) {
#pragma unroll
        for (int box = 0; box < BOXES<HS>; box++)
            store_tile(out, box * LINE, item.head, first_query, item.batch, outbox[box]);
        close_stores();
    }
}

// A consumer's 64 queries of each item. The scores of a tile are started before the products with the values of the tile
// before it, and both run beside the softmax of the other consumer; this one's own runs beside its products with values.
template <typename T, int HS>
__device__ void consume(Shared<T, HS>& shared, const Work& work, int group, const TensorMap* out, float* lse,
                        float scale) {
    int n = 0, turn = 0;  // tiles of keys and of queries used
    for (int number = blockIdx.x; number < work.items(); number += gridDim.x, turn++) {
        const Work::Item item = work.item(number);
        const int first_query = item.first_query + group * OWN;
        const auto& q = shared.q[shared.queries.stage(turn)];
        Softmax softmax(scale);
        float sums[HS / 2] = {};
        float scores[KEYS / 2];
        unsigned p[KEYS / STRIP][4];

        shared.queries.wait(turn);
        shared.keys.wait(n);
        in_turn(group, [&] {
            begin_products();
            multiply_keys<HS>(scores, q, group * OWN, shared.k[shared.keys.stage(n)]);
            close_products();
        });
        wait_products<0>();
        hold(scores);
        give_back(shared.keys, n);
        if (work.causal || work.tokens % KEYS) {
            const int end = work.causal ? first_query + own_row() + 1 : work.tokens;
            mask(scores, end - item.first_key(0) - own_column(), work.causal);
        }
        softmax.take(scores);
        to_operands<T>(p, scores);

        for (int step = 1; step < item.steps; step++) {
            n++;
            const auto& v = shared.v[shared.values.stage(n - 1)];
            shared.keys.wait(n);
            shared.values.wait(n - 1);
            in_turn(group, [&] {
                begin_products();
                multiply_keys<HS>(scores, q, group * OWN, shared.k[shared.keys.stage(n)]);
                close_products();
                add_values<HS>(sums, p, v);
                close_products();
            });
            wait_products<1>();
            hold(scores);
            give_back(shared.keys, n);
            softmax.take(scores);
            wait_products<0>();
            hold(sums);
            hold(scores);  // the operands of the products are free only now
            give_back(shared.values, n - 1);
            softmax.rescale(sums);
            to_operands<T>(p, scores);
        }
        give_back(shared.queries, turn);

        shared.values.wait(n);
        begin_products();
        add_values<HS>(sums, p, shared.v[shared.values.stage(n)]);
        close_products();
        wait_products<0>();
        hold(sums);
        give_back(shared.values, n);
        n++;
        finish<T, HS>(shared.out[group], OUTBOXES + group, out, lse, item, first_query, work.tokens, softmax, sums);
    }
    if (threadIdx.x % GROUP == 0) wait_stores<0>();
}

// out = softmax(q k^T) v and lse, the logarithm of the softmax's denominator. Blocks stay; each has one producer.
template <typename T, int HS>
__global__ void __launch_bounds__(THREADS, 1)
    attention_forward(const __grid_constant__ TensorMap out, float* lse, const __grid_constant__ TensorMap q,
                      const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, int heads, int tokens,
                      int NH, int NKV, float scale, bool causal) {
    extern __shared__ __align__(1024) unsigned char shared_memory[];
    Shared<T, HS>& shared = *reinterpret_cast<Shared<T, HS>*>(shared_memory);
    if (threadIdx.x == 0) {
        shared.queries.make(CONSUMERS * GROUP / WARP);
        shared.keys.make(CONSUMERS * GROUP / WARP);
        shared.values.make(CONSUMERS * GROUP / WARP);
        fence_barriers();
    }
    __syncthreads();
    const Work work{heads, tokens, NH, NKV, causal};
    const int group = threadIdx.x / GROUP;
    if (group == CONSUMERS) {
        give_registers_back<PRODUCER_REGISTERS>();
        if (threadIdx.x % GROUP == 0) produce<T, HS>(shared, work, &q, &k, &v);
        return;
    }
    take_registers<CONSUMER_REGISTERS>();
    if (group == 1) arrive_at_named_barrier(TURNS, THREADS - GROUP);  // the first turn is the first one's
    consume<T, HS>(shared, work, group, &out, lse, scale);
    if (group == 0) named_barrier(TURNS, THREADS - GROUP);  // with the other's last arrival
}
