#include "common/hopper.cuh"
#include "common/math.cuh"
#include "common/matrix.cuh"
#include "common/named_barrier.cuh"
#include "common/operands.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"
#include "common/ring.cuh"
#include "common/swizzle.cuh"

constexpr int LINE = 64;    // elements of a line of 128 bytes, as wide as TMA's swizzle: a wider head has two boxes
constexpr int GROUP = 128;  // threads of a warpgroup: a producer, of which one thread works, and the consumers
constexpr int CONSUMERS = 2, THREADS = GROUP * (1 + CONSUMERS);
constexpr int OWN = 64;                               // rows of a consumer's: as many as a product has
constexpr int QUERIES = CONSUMERS * OWN, KEYS = 128;  // of a block, and of a tile that it walks over
constexpr int STRIP = 16;                             // what a product sums over
constexpr int EIGHT_LINES = 8 * 128;                  // bytes, after which the swizzle repeats
constexpr int SECTION = 64;                           // heads whose tiles are worked on together: they stay in L2
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
constexpr int TURNS = 1;                     // named barriers, one for each consumer
constexpr int OUTBOXES = TURNS + CONSUMERS;  // and so these

static_assert(QUERIES == KEYS, "only a row of tiles' last one is masked, and has the boxes of the others");

template <int HS>
constexpr int BOXES = (HS + LINE - 1) / LINE;  // TMA fills them up with zeros, and leaves those out when it stores
template <int HS>
constexpr int STAGES = HS <= LINE ? 4 : 2;  // of k and of v; q has half as many, as it is read once a row of tiles

template <typename T, int HS>
struct Shared {
    T q[STAGES<HS> / 2][BOXES<HS>][KEYS * LINE];
    T k[STAGES<HS>][BOXES<HS>][KEYS * LINE];
    T v[STAGES<HS>][BOXES<HS>][KEYS * LINE];
    T out[CONSUMERS][BOXES<HS>][OWN * LINE];
    Ring<STAGES<HS> / 2> queries;
    Ring<STAGES<HS>> keys, values;
};

// Which head an item is of, of those of the whole batch, and which of its tiles, 0 for those that come first: section
// by section, in it the first tiles of all its heads before the second ones.
struct Turn {
    int row, tile;
    __device__ Turn(int number, int heads, int tiles) {
        const int first = number / (SECTION * tiles) * SECTION, size = min(heads - first, SECTION);
        const int rest = number - first * tiles;
        row = first + rest % size;
        tile = rest / size;
    }
};

// Block b takes every gridDim.x-th item from the b-th on. Forward's is a tile of queries, against all tiles of keys
// that it sees, from the last one on: there its masks are.
struct Work {
    int heads, tokens, NH, NKV;
    bool causal;

    struct Item {
        int row, batch, head, kv_head, first_query;
        int steps;  // tiles of keys
        __device__ int first_key(int step) const { return (steps - 1 - step) * KEYS; }
    };

    __device__ int tiles() const { return (tokens + QUERIES - 1) / QUERIES; }
    __device__ int items() const { return heads * tiles(); }
    __device__ Item item(int number) const {
        const Turn turn(number, heads, tiles());
        const int head = turn.row % NH, tile = tiles() - 1 - turn.tile;  // those that see most keys come first
        const int steps = causal ? tile + 1 : tiles();
        return {turn.row, turn.row / NH, head, head / (NH / NKV), tile * QUERIES, steps};
    }
};

// ---- products ------------------------------------------------------------------------------------------------------

// Rows of a head lie in boxes of as many lines as there are rows. products = the own rows from line `first` on, 64 of
// them, times the transpose of the others, or of the first of them. What boxes have beyond a head is not multiplied.
template <int HS, typename T, int PARTS, int OWN_BOX, int OTHERS_BOX, int COUNT>
__device__ void multiply_rows(float (&products)[COUNT], const T (&own)[PARTS][OWN_BOX], int first,
                              const T (&others)[PARTS][OTHERS_BOX]) {
    static_assert(OTHERS_BOX >= 2 * COUNT * LINE, "others for all products");
    static_assert(HS % STRIP == 0 && HS <= PARTS * LINE, "a head is whole products");
    const unsigned long long a = matrix_descriptor(own[0] + first * LINE, 16, EIGHT_LINES);
    const unsigned long long b = matrix_descriptor(others[0], 16, EIGHT_LINES);
#pragma unroll
    for (int d = 0; d < HS; d += STRIP)
        warpgroup_multiply_add<T, 2 * COUNT>(products, further(a, (d / LINE * OWN_BOX + d % LINE) * sizeof(T)),
                                             further(b, (d / LINE * OTHERS_BOX + d % LINE) * sizeof(T)), d > 0);
}

// sums += weights times the rows
template <typename T, int PARTS, int BOX, int STRIPS, int COUNT>
__device__ void add_rows(float (&sums)[COUNT], const unsigned (&weights)[STRIPS][4], const T (&rows)[PARTS][BOX]) {
    static_assert(BOX == STRIPS * STRIP * LINE && 2 * COUNT <= PARTS * LINE, "a weight for each row");
    const unsigned long long b = matrix_descriptor(rows[0], BOX * sizeof(T), EIGHT_LINES);
#pragma unroll
    for (int i = 0; i < STRIPS; i++)
        warpgroup_multiply_add<T, 2 * COUNT, true>(sums, weights[i], further(b, i * STRIP * LINE * sizeof(T)));
}

// Products, rounded, as weights of the next ones; zeros where there is none.
template <typename T, int STRIPS, int COUNT>
__device__ void to_weights(unsigned (&weights)[STRIPS][4], const float (&products)[COUNT]) {
    static_assert(COUNT <= STRIPS * 8, "a weight for each");
#pragma unroll
    for (int i = 0; i < STRIPS; i++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            weights[i][r] =
                i * 8 < COUNT ? packed_pair<T>(products[i * 8 + r * 2], products[i * 8 + r * 2 + 1]) : 0u;
}

// This lane's first row of a consumer's products, and its first column. Of four of them the last two are 8 rows below,
// every second is one column further, and the j-th four are 8 j columns further.
__device__ inline int own_row() { return warp_id() % 4 * STRIP + lane_id() / 4; }
__device__ inline int own_column() { return lane_id() % 4 * 2; }

// Over the four lanes that share a row; each gets the result.
template <typename Combine>
__device__ float row_reduce(float value, Combine combine) {
    value = combine(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return combine(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// Every lane of the warp has read what it wanted of the stage, and so have its products.
template <int STAGES>
__device__ void give_back(Ring<STAGES>& ring, int n) {
    __syncwarp();
    if (lane_id() == 0) ring.give_back(n);
}

// Sums, times a factor for each of the lane's two rows, to the rows of a tensor from `row` on, by way of shared memory.
template <typename T, int PARTS, int COUNT>
__device__ void send_rows(T (&outbox)[PARTS][OWN * LINE], int barrier, const float (&sums)[COUNT],
                          const float (&factors)[2], const TensorMap* map, int batch, int head, int row, int rows) {
#pragma unroll
    for (int j = 0; j < COUNT / 4; j += 2) {
        unsigned parts[4];
        const float* of = sums + j * 4;
#pragma unroll
        for (int p = 0; p < 4; p++)
            parts[p] = packed_pair<T>(of[p * 2] * factors[p % 2], of[p * 2 + 1] * factors[p % 2]);
        const int line = warp_id() % 4 * STRIP + lane_id() % STRIP, piece = j % 8 + lane_id() / STRIP;
        store_matrices(outbox[j / 8] + swizzled<8>(line, piece) * 8, parts);
    }
    fence_shared();
    named_barrier(barrier, GROUP);
    if (threadIdx.x % GROUP == 0 && row < rows) {
#pragma unroll
        for (int box = 0; box < PARTS; box++) store_tile(map, box * LINE, head, row, batch, outbox[box]);
        close_stores();
    }
}

// Zeros into what lines have beyond a head: TMA stores none of it, but takes boxes whole.
template <int HS, typename T, int PARTS>
__device__ void clear_rest(T (&outbox)[PARTS][OWN * LINE]) {
    if constexpr (HS % LINE != 0) {
        int4* last = reinterpret_cast<int4*>(outbox[PARTS - 1]);
        for (int i = threadIdx.x % GROUP; i < OWN * LINE * int(sizeof(T)) / 16; i += GROUP) last[i] = int4{};
    }
}

// Until what a consumer sent last has left its outboxes.
__device__ inline void claim(int barrier) {
    if (threadIdx.x % GROUP == 0) wait_stores_read<0>();
    named_barrier(barrier, GROUP);
}

// Has rows of a head from `row` on copied to a stage: the boxes that begin at its `first`.
template <typename T, int PARTS, int BOX>
__device__ void bring(T (&to)[PARTS][BOX], const TensorMap* map, int batch, int head, int row, Barrier* full) {
#pragma unroll
    for (int box = 0; box < PARTS; box++) load_tile(to[box], map, box * LINE, head, row, batch, full);
}

// Which warpgroup this is, told by one lane to all: then the compiler knows that it is the same for all of a warp, and
// keeps what is worked out from it once a warp, where wgmma wants it.
__device__ inline int warpgroup() { return __shfl_sync(ALL_LANES, threadIdx.x / GROUP, 0); }

// Keeps a branch that is seldom taken a branch: else all of it is worked out each time and selected from.
__device__ inline void seldom() { asm volatile(""); }

// ---- the running softmax -------------------------------------------------------------------------------------------

// Scores become exp2(scale2 score - offset), with which they are told apart from their row's largest by one
// multiply-add. Its rounding is the same for the whole row, and of no account; but far away from 0 it is larger than
// what exp2 can take, and there the largest is subtracted first.
constexpr float FAR = 1024;

// Sums are scaled anew when a row's largest has grown by more than this, in powers of two: until then probabilities
// lie above 1, by no more than 16 bits can hold, and nothing is lost.
constexpr float SLACK = 8;

// Two rows of a lane, 8 apart.
struct Softmax {
    float scale2;
    float largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, denominator[2] = {0, 0};
    float correction[2];  // of what was summed before, if it has grown
    bool grown;

    __device__ explicit Softmax(float scale) : scale2(scale * LOG2_E) {}

    // Scores become probabilities, up to the denominator.
    template <int COUNT>
    __device__ void take(float (&scores)[COUNT]) {
        float most[2] = {largest[0], largest[1]};
#pragma unroll
        for (int e = 0; e < COUNT; e++) most[e / 2 % 2] = fmaxf(most[e / 2 % 2], scores[e]);
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
            for (int e = 0; e < COUNT; e++) scores[e] -= largest[e / 2 % 2];
            offset[0] = offset[1] = 0;
        }
#pragma unroll
        for (int e = 0; e < COUNT; e++) {
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
template <int COUNT>
__device__ void mask(float (&scores)[COUNT], int visible, bool causal) {
#pragma unroll
    for (int e = 0; e < COUNT; e++)
        if (e / 4 * 8 + e % 2 >= visible + (causal ? e / 2 % 2 * 8 : 0)) scores[e] = MINUS_INFINITY;
}

// ---- forward -------------------------------------------------------------------------------------------------------

// One thread has everything copied that the consumers need, in their order, as far ahead as the rings have stages.
template <typename T, int HS>
__device__ void produce(Shared<T, HS>& shared, const Work& work, const TensorMap* q, const TensorMap* k,
                        const TensorMap* v) {
    constexpr int BYTES = sizeof(shared.k[0]);
    int n = 0, turn = 0;
    for (int number = blockIdx.x; number < work.items(); number += gridDim.x, turn++) {
        const Work::Item item = work.item(number);
        for (int step = 0; step < item.steps; step++, n++) {
            const int first_key = item.first_key(step);
            shared.keys.fill(n, BYTES);
            bring(shared.k[shared.keys.stage(n)], k, item.batch, item.kv_head, first_key, shared.keys.full(n));
            if (step == 0) {
                shared.queries.fill(turn, BYTES);
                bring(shared.q[shared.queries.stage(turn)], q, item.batch, item.head, item.first_query,
                      shared.queries.full(turn));
            }
            shared.values.fill(n, BYTES);
            bring(shared.v[shared.values.stage(n)], v, item.batch, item.kv_head, first_key, shared.values.full(n));
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

// A consumer's 64 queries of each item. The scores of a tile are started before the products with the values of the
// tile before it, and both run beside the softmax of the other consumer; this one's own runs beside the latter.
template <typename T, int HS>
__device__ void consume(Shared<T, HS>& shared, const Work& work, int group, const TensorMap* out, float* lse,
                        float scale) {
    int n = 0, turn = 0;  // tiles of keys and of queries used
    clear_rest<HS>(shared.out[group]);
    for (int number = blockIdx.x; number < work.items(); number += gridDim.x, turn++) {
        const Work::Item item = work.item(number);
        const int first_query = item.first_query + group * OWN;
        const auto& q = shared.q[shared.queries.stage(turn)];
        Softmax softmax(scale);
        float sums[HS / 2] = {}, scores[KEYS / 2];
        unsigned p[KEYS / STRIP][4];

        shared.queries.wait(turn);
        shared.keys.wait(n);
        // The tile with the masks, or as many of its first keys as there are scores for.
        auto take_first = [&](auto& some) {
            in_turn(group, [&] {
                begin_products();
                multiply_rows<HS>(some, q, group * OWN, shared.k[shared.keys.stage(n)]);
                close_products();
            });
            wait_products<0>();
            hold(some);
            give_back(shared.keys, n);
            if (work.causal || work.tokens % KEYS) {
                const int end = work.causal ? first_query + own_row() + 1 : work.tokens;
                mask(some, end - item.first_key(0) - own_column(), work.causal);
            }
            softmax.take(some);
            to_weights<T>(p, some);
        };
        if (work.causal && group == 0) {  // whose queries see no more of them
            float some[OWN / 2];
            take_first(some);
        } else {
            take_first(scores);
        }

        for (int step = 1; step < item.steps; step++) {
            n++;
            const auto& v = shared.v[shared.values.stage(n - 1)];
            shared.keys.wait(n);
            shared.values.wait(n - 1);
            in_turn(group, [&] {
                begin_products();
                multiply_rows<HS>(scores, q, group * OWN, shared.k[shared.keys.stage(n)]);
                close_products();
                add_rows(sums, p, v);
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
            to_weights<T>(p, scores);
        }
        give_back(shared.queries, turn);

        shared.values.wait(n);
        begin_products();
        add_rows(sums, p, shared.v[shared.values.stage(n)]);
        close_products();
        wait_products<0>();
        hold(sums);
        give_back(shared.values, n);
        n++;

        float reciprocal[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = first_query + own_row() + half * 8;
            const float sum = row_reduce(softmax.denominator[half], Sum{});
            reciprocal[half] = 1 / sum;
            if (query < work.tokens && lane_id() % 4 == 0)
                lse[item.row * (long long)work.tokens + query] = softmax.largest[half] * scale + logf(sum);
        }
        claim(OUTBOXES + group);
        send_rows(shared.out[group], OUTBOXES + group, sums, reciprocal, out, item.batch, item.head, first_query,
                  work.tokens);
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
    const int group = warpgroup();
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

// ---- backward ------------------------------------------------------------------------------------------------------

// A block owns 128 rows of two tensors, each consumer 64 of them, and walks over tiles of two others: it owns keys and
// walks over the queries that see them, of all heads that share them (dk, dv), or owns queries and walks over the keys
// that they see (dq). Nobody else adds to what it owns.
constexpr int OWNED = CONSUMERS * OWN, PASSING = 64;
template <int HS>
constexpr int PASSING_STAGES = HS <= LINE ? 4 : 3;  // one whose sums are under way, one to be left out, and the next

template <typename T, int HS>
using Rows = T[BOXES<HS>][OWN * LINE];
static_assert(OWN == PASSING, "both have the same boxes");

template <typename T, int HS>
struct BackwardShared {
    Rows<T, HS> own[STAGES<HS> / 2][2][CONSUMERS];
    Rows<T, HS> passing[PASSING_STAGES<HS>][2];
    Rows<T, HS> out[CONSUMERS][2];
    float statistics[PASSING_STAGES<HS>][2][PASSING];  // lse in base 2, and delta, of passing queries
    Ring<STAGES<HS> / 2> owned;
    Ring<PASSING_STAGES<HS>> passed;
};

template <bool OF_KEYS>
struct Walk {
    int batches, tokens, NH, NKV;
    bool causal;

    struct Item {
        int row, batch, head, first;  // of what is owned
        int passing_head, heads, begin, tiles;  // what passes: tiles of some heads, in each from row `begin` on
        __device__ int steps() const { return heads * tiles; }
    };

    __device__ int heads() const { return batches * (OF_KEYS ? NKV : NH); }
    __device__ int tiles() const { return (tokens + OWNED - 1) / OWNED; }
    __device__ int items() const { return heads() * tiles(); }
    __device__ Item item(int number) const {
        const Turn turn(number, heads(), tiles());
        const int of_each = OF_KEYS ? NKV : NH, batch = turn.row / of_each, head = turn.row % of_each;
        const int group = NH / NKV, passing_tiles = (tokens + PASSING - 1) / PASSING;
        if (OF_KEYS) {  // the first keys are seen most, and come first
            const int first = turn.tile * OWNED, begin = causal ? first : 0;
            const int left = passing_tiles - begin / PASSING;
            return {turn.row, batch, head, first, head * group, group, begin, left};
        }
        const int first = (tiles() - 1 - turn.tile) * OWNED;
        const int seen = causal ? min(passing_tiles, (first + OWNED) / PASSING) : passing_tiles;
        return {turn.row, batch, head, first, head / group, 1, 0, seen};
    }
};

struct Maps {
    const TensorMap *own[2], *passing[2], *statistics;
};

template <typename T, int HS, bool OF_KEYS>
__device__ void produce(BackwardShared<T, HS>& shared, const Walk<OF_KEYS>& work, const Maps& maps) {
    constexpr int BYTES = sizeof(shared.passing[0]) + (OF_KEYS ? sizeof(shared.statistics[0]) : 0);
    int n = 0, turn = 0;
    for (int number = blockIdx.x; number < work.items(); number += gridDim.x, turn++) {
        const typename Walk<OF_KEYS>::Item item = work.item(number);
        auto& own = shared.own[shared.owned.stage(turn)];
        shared.owned.fill(turn, sizeof(own));
#pragma unroll
        for (int which = 0; which < 2; which++)
#pragma unroll
            for (int c = 0; c < CONSUMERS; c++)
                bring(own[which][c], maps.own[which], item.batch, item.head, item.first + c * OWN,
                      shared.owned.full(turn));
        for (int head = item.passing_head; head < item.passing_head + item.heads; head++)
            for (int tile = 0; tile < item.tiles; tile++, n++) {
                const int stage = shared.passed.stage(n), passing = item.begin + tile * PASSING;
                Barrier* full = shared.passed.full(n);
                shared.passed.fill(n, BYTES);
#pragma unroll
                for (int which = 0; which < 2; which++) {
                    bring(shared.passing[stage][which], maps.passing[which], item.batch, head, passing, full);
                    if (OF_KEYS) {
                        const int row = (which * work.batches + item.batch) * work.NH + head;
                        load_tile(shared.statistics[stage][which], maps.statistics, passing, row, full);
                    }
                }
            }
    }
}

// dk = scale ds^T q and dv = p^T dout of a consumer's 64 keys. Scores and their gradients are worked out transposed, so
// that they are in the registers that the products with queries take them from. The next tile's scores are started
// before those, and their gradients after them, beside the exponents: where registers allow (EARLY) at once, and else
// when the sums are there.
template <typename T, int HS, bool EARLY = HS <= LINE>
__device__ void sum_queries(BackwardShared<T, HS>& shared, const Walk<true>& work, int group, const TensorMap* dk,
                            const TensorMap* dv, float scale) {
    const float scale2 = scale * LOG2_E;
    int n = 0, turn = 0;
    clear_rest<HS>(shared.out[group][0]);
    clear_rest<HS>(shared.out[group][1]);
    for (int number = blockIdx.x; number < work.items(); number += gridDim.x, turn++) {
        const Walk<true>::Item item = work.item(number);
        const int own_key = item.first + group * OWN;
        const auto& k = shared.own[shared.owned.stage(turn)][0][group];
        const auto& v = shared.own[shared.owned.stage(turn)][1][group];
        float dk_sums[HS / 2] = {}, dv_sums[HS / 2] = {}, p[PASSING / 2], ds[PASSING / 2];
        unsigned p_weights[PASSING / STRIP][4], ds_weights[PASSING / STRIP][4];
        auto q_of = [&](int step) -> const Rows<T, HS>& { return shared.passing[shared.passed.stage(n + step)][0]; };
        auto dout_of = [&](int step) -> const Rows<T, HS>& { return shared.passing[shared.passed.stage(n + step)][1]; };
        const int steps = item.steps(), ahead = item.begin - own_key;  // so far are a head's first queries
        const bool blind = work.causal && ahead <= -PASSING;           // and none of them sees own keys
        int first_ahead = ahead;                                       // of the tile of this step
        // Goes on from `step` to one that sees own keys; what does not is given back.
        auto seen = [&](int step) {
            for (; step < steps; step++, first_ahead += PASSING) {
                if (first_ahead == ahead + item.tiles * PASSING) first_ahead = ahead;  // the next head's
                shared.passed.wait(n + step);
                if (!blind || first_ahead > ahead) break;
                give_back(shared.passed, n + step);
            }
            return step;
        };

        shared.owned.wait(turn);
        int step = seen(0), last = -1;
        if (step < steps) {
            hold(dk_sums);  // zeros before any product is on its way: else each would wait for the one before
            hold(dv_sums);
            begin_products();
            multiply_rows<HS>(p, k, 0, q_of(step));
            close_products();
            if (EARLY) {
                multiply_rows<HS>(ds, v, 0, dout_of(step));
                close_products();
            }
            while (true) {
                wait_products<EARLY>();
                hold(p);
                if (!EARLY) {
                    hold(dk_sums);
                    hold(dv_sums);
                    if (last >= 0) give_back(shared.passed, n + last);
                    begin_products();
                    multiply_rows<HS>(ds, v, 0, dout_of(step));
                    close_products();
                }

                const auto& statistics = shared.statistics[shared.passed.stage(n + step)];
#pragma unroll
                for (int j = 0; j < PASSING / 8; j++) {
                    const Packed<float, 2> lse2 = load<2>(statistics[0] + j * 8 + own_column());
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        p[j * 4 + e] = exp2_approx(fmaf(p[j * 4 + e], scale2, -lse2[e % 2]));
                }
                if (work.causal && first_ahead < OWN - 1) {
                    seldom();
#pragma unroll
                    for (int e = 0; e < PASSING / 2; e++) {
                        const int hidden = own_row() + e / 2 % 2 * 8 - first_ahead - own_column() - e % 2;
                        if (e / 4 * 8 < hidden) p[e] = 0;
                    }
                }
                wait_products<0>();
                hold(ds);
                if (EARLY) {
                    hold(dk_sums);
                    hold(dv_sums);
                    if (last >= 0) give_back(shared.passed, n + last);
                }
#pragma unroll
                for (int j = 0; j < PASSING / 8; j++) {
                    const Packed<float, 2> delta = load<2>(statistics[1] + j * 8 + own_column());
#pragma unroll
                    for (int e = 0; e < 4; e++) ds[j * 4 + e] = p[j * 4 + e] * (ds[j * 4 + e] - delta[e % 2]);
                }
                to_weights<T>(p_weights, p);
                to_weights<T>(ds_weights, ds);
                last = step;
                first_ahead += PASSING;
                step = seen(step + 1);
                if (step >= steps) break;
                begin_products();
                multiply_rows<HS>(p, k, 0, q_of(step));
                close_products();
                add_rows(dv_sums, p_weights, dout_of(last));
                add_rows(dk_sums, ds_weights, q_of(last));
                if (EARLY) multiply_rows<HS>(ds, v, 0, dout_of(step));
                close_products();
            }
            begin_products();
            add_rows(dv_sums, p_weights, dout_of(last));
            add_rows(dk_sums, ds_weights, q_of(last));
            close_products();
            wait_products<0>();
            hold(dk_sums);
            hold(dv_sums);
            give_back(shared.passed, n + last);
        }
        give_back(shared.owned, turn);
        n += steps;
        const float scales[2] = {scale, scale}, ones[2] = {1, 1};
        claim(OUTBOXES + group);
        send_rows(shared.out[group][0], OUTBOXES + group, dk_sums, scales, dk, item.batch, item.head, own_key,
                  work.tokens);
        send_rows(shared.out[group][1], OUTBOXES + group, dv_sums, ones, dv, item.batch, item.head, own_key,
                  work.tokens);
    }
    if (threadIdx.x % GROUP == 0) wait_stores<0>();
}

// dq = scale ds k of a consumer's 64 queries. The next tile's scores and their gradients are started with the products
// with keys, and the exponents run beside all but the scores.
template <typename T, int HS>
__device__ void sum_keys(BackwardShared<T, HS>& shared, const Walk<false>& work, int group, const TensorMap* dq,
                         const float* statistics, int padded, float scale) {
    const float scale2 = scale * LOG2_E;
    int n = 0, turn = 0;
    clear_rest<HS>(shared.out[group][0]);
    for (int number = blockIdx.x; number < work.items(); number += gridDim.x, turn++) {
        const Walk<false>::Item item = work.item(number);
        const int own_query = item.first + group * OWN;
        const int steps = work.causal ? min(item.tiles, own_query / PASSING + 1) : item.tiles;
        const auto& q = shared.own[shared.owned.stage(turn)][0][group];
        const auto& dout = shared.own[shared.owned.stage(turn)][1][group];
        float sums[HS / 2] = {}, p[PASSING / 2], ds[PASSING / 2], lse2[2], delta[2];
        unsigned weights[PASSING / STRIP][4];
        auto k_of = [&](int step) -> const Rows<T, HS>& { return shared.passing[shared.passed.stage(n + step)][0]; };
        auto v_of = [&](int step) -> const Rows<T, HS>& { return shared.passing[shared.passed.stage(n + step)][1]; };
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float* of = statistics + item.row * (long long)padded + own_query + own_row() + half * 8;
            lse2[half] = of[0];
            delta[half] = of[work.heads() * (long long)padded];
        }

        shared.owned.wait(turn);
        shared.passed.wait(n);
        hold(sums);  // zeros before any product is on its way: else each would wait for the one before
        begin_products();
        multiply_rows<HS>(p, q, 0, k_of(0));
        close_products();
        multiply_rows<HS>(ds, dout, 0, v_of(0));
        close_products();
        for (int step = 0;; step++) {
            wait_products<1>();
            hold(p);
#pragma unroll
            for (int e = 0; e < PASSING / 2; e++) p[e] = exp2_approx(fmaf(p[e], scale2, -lse2[e / 2 % 2]));
            const int ahead = step * PASSING - own_query;
            if (work.causal ? ahead + PASSING > 1 : (step + 1) * PASSING > work.tokens) {
                seldom();
#pragma unroll
                for (int e = 0; e < PASSING / 2; e++) {
                    const int query = own_row() + e / 2 % 2 * 8;
                    const int visible = work.causal ? query + 1 - ahead : work.tokens - step * PASSING;
                    if (e / 4 * 8 + own_column() + e % 2 >= visible) p[e] = 0;
                }
            }
            wait_products<0>();
            hold(ds);
            hold(sums);
            if (step > 0) give_back(shared.passed, n + step - 1);
#pragma unroll
            for (int e = 0; e < PASSING / 2; e++) ds[e] = p[e] * (ds[e] - delta[e / 2 % 2]);
            to_weights<T>(weights, ds);
            if (step + 1 >= steps) break;
            shared.passed.wait(n + step + 1);
            begin_products();
            multiply_rows<HS>(p, q, 0, k_of(step + 1));
            close_products();
            add_rows(sums, weights, k_of(step));
            multiply_rows<HS>(ds, dout, 0, v_of(step + 1));
            close_products();
        }
        give_back(shared.owned, turn);
        begin_products();
        add_rows(sums, weights, k_of(steps - 1));
        close_products();
        wait_products<0>();
        hold(sums);
        give_back(shared.passed, n + steps - 1);
        for (int step = steps; step < item.tiles; step++) {  // which no own query sees
            shared.passed.wait(n + step);
            give_back(shared.passed, n + step);
        }
        n += item.tiles;
        const float scales[2] = {scale, scale};
        claim(OUTBOXES + group);
        send_rows(shared.out[group][0], OUTBOXES + group, sums, scales, dq, item.batch, item.head, own_query,
                  work.tokens);
    }
    if (threadIdx.x % GROUP == 0) wait_stores<0>();
}

// The block's shared memory, its rings made.
template <typename T, int HS>
__device__ BackwardShared<T, HS>& backward_shared() {
    extern __shared__ __align__(1024) unsigned char shared_memory[];
    auto& shared = *reinterpret_cast<BackwardShared<T, HS>*>(shared_memory);
    if (threadIdx.x == 0) {
        shared.owned.make(CONSUMERS * GROUP / WARP);
        shared.passed.make(CONSUMERS * GROUP / WARP);
        fence_barriers();
    }
    __syncthreads();
    return shared;
}

// `statistics` is of 2 B NH rows: for each head lse in base 2, and then for each delta, the sum of dout * out.
template <typename T, int HS>
__global__ void __launch_bounds__(THREADS, 1)
    attention_dkdv(const __grid_constant__ TensorMap dk, const __grid_constant__ TensorMap dv,
                   const __grid_constant__ TensorMap dout, const __grid_constant__ TensorMap q,
                   const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                   const __grid_constant__ TensorMap statistics, int batches, int tokens, int NH, int NKV, float scale,
                   bool causal) {
    auto& shared = backward_shared<T, HS>();
    const Walk<true> work{batches, tokens, NH, NKV, causal};
    const int group = warpgroup();
    if (group == CONSUMERS) {
        give_registers_back<PRODUCER_REGISTERS>();
        if (threadIdx.x % GROUP == 0) produce(shared, work, Maps{{&k, &v}, {&q, &dout}, &statistics});
    } else {
        take_registers<CONSUMER_REGISTERS>();
        sum_queries(shared, work, group, &dk, &dv, scale);
    }
}

template <typename T, int HS>
__global__ void __launch_bounds__(THREADS, 1)
    attention_dq(const __grid_constant__ TensorMap dq, const __grid_constant__ TensorMap dout,
                 const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                 const __grid_constant__ TensorMap v, const float* statistics, int padded, int batches, int tokens,
                 int NH, int NKV, float scale, bool causal) {
    auto& shared = backward_shared<T, HS>();
    const Walk<false> work{batches, tokens, NH, NKV, causal};
    const int group = warpgroup();
    if (group == CONSUMERS) {
        give_registers_back<PRODUCER_REGISTERS>();
        if (threadIdx.x % GROUP == 0) produce(shared, work, Maps{{&q, &dout}, {&k, &v}, nullptr});
    } else {
        take_registers<CONSUMER_REGISTERS>();
        sum_keys(shared, work, group, &dq, statistics, padded, scale);
    }
}
