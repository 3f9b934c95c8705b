#include "common/async_copy.cuh"
#include "common/many.cuh"
#include "common/math.cuh"
#include "common/matrix.cuh"
#include "common/operands.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"
#include "common/swizzle.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP;  // of a block
constexpr int PER_SM = 2;                         // blocks: for a third one the compiler would let registers spill
constexpr int STRIP = 16;                         // rows of a tensor core's product
constexpr int TILE = 64;                          // rows of a tile that a block walks over
constexpr int SECTION = 64;                       // heads whose blocks run together: their tiles stay in the L2 cache

// Columns of a tile: a head, filled up with zeros to what a product takes at once.
template <int HS>
constexpr int WIDTH = (HS + STRIP - 1) / STRIP * STRIP;
template <int HS>
constexpr int ROW_BYTES = WIDTH<HS> * 2;
template <int HS>
constexpr int PIECES = ROW_BYTES<HS> / PIECE_BYTES;

// Strips of rows that a warp owns. What it reads of the other operand serves all of them; wider heads have no registers
// for two.
template <int HS>
constexpr int STRIPS = HS <= 64 ? 2 : 1;
template <int HS>
constexpr int OWN = STRIPS<HS> * STRIP;
template <int HS>
constexpr int BLOCK_ROWS = WARPS * OWN<HS>;

// Rows of a tile in backward whose scores are in registers at a time, beside the sums.
constexpr int DKDV_SLICE = 16, DQ_SLICE = 32;

template <int HS, int COLUMNS = WIDTH<HS>>
using Sums = float[STRIPS<HS>][COLUMNS / 8][4];  // of products with the own rows: as multiply_add has them

// The first key that a query sees through its window.
__device__ inline int first_seen(int query, int window) { return max(0, query - window + 1); }

// Keeps a branch that is seldom taken a branch: else all of it is worked out each time and selected from.
__device__ inline void seldom() { asm volatile(""); }

// Tiles in shared memory are known by their addresses there.
template <typename T>
__device__ T* in_shared(unsigned address) {
    return static_cast<T*>(__cvta_shared_to_generic(address));
}

// Which head's rows a block takes, and which of their tiles, 0 for those that begin first: section by section, in it
// the first tiles of all its heads before the second ones.
struct Turn {
    int head, tile;
    __device__ Turn(int heads, int tiles) {
        const int first = blockIdx.x / (SECTION * tiles) * SECTION, size = min(heads - first, SECTION);
        const int rest = blockIdx.x - first * tiles;
        head = first + rest % size;
        tile = rest / size;
    }
};

constexpr int power_of_2_up_to(int x) { return x < 2 ? 1 : 2 * power_of_2_up_to(x / 2); }

// Of rows that go into tiles, what this thread copies: N neighbouring elements, of the same columns each time.
template <int HS, int N, typename T>
struct Copier {
    static constexpr int PACKS = WIDTH<HS> / N, AT_ONCE = power_of_2_up_to(THREADS / PACKS);  // rows

    const T* from;  // this thread's part of the first row
    long long stride;
    int row, column;

    __device__ Copier(const T* rows, long long stride)
        : stride(stride), row(threadIdx.x / PACKS), column(threadIdx.x % PACKS * N) {
        from = rows + row * stride + column;
    }

    // ROWS rows from `first` on; zeros from row `tokens` and from column HS on. Single elements of 16 bits no
    // asynchronous copy takes.
    template <int ROWS>
    __device__ void copy(unsigned tile, int first, int tokens) const {
        static_assert(ROWS % AT_ONCE == 0, "threads share rows evenly");
        if (AT_ONCE * PACKS < THREADS && row >= AT_ONCE) return;
        constexpr int UNROLL = N > 2 ? ROWS : 4;  // many narrow copies would be much code
        const T* at = from + first * stride;
#pragma unroll UNROLL
        for (int r = 0; r < ROWS; r += AT_ONCE) {
            const bool inside = first + row + r < tokens && (HS == WIDTH<HS> || column < HS);
            // every 8 rows the swizzle begins anew
            const int line = AT_ONCE % 8 == 0 ? row : row + r, further = AT_ONCE % 8 == 0 ? r : 0;
            T* to = in_shared<T>(tile + swizzled<PIECES<HS>>(line, column / 8) * PIECE_BYTES + further * ROW_BYTES<HS>);
            if constexpr (N > 1)
                copy_async_or_zero<N * sizeof(T)>(to + column % 8, at + r * stride, inside);
            else
                to[column % 8] = inside ? at[r * stride] : T(0.0f);
        }
    }
};

// A product takes 16 rows by 16 columns of a tile at once, for which a lane gives the address of a row of one of four
// 8 x 8 matrices: bytes from where the tile begins. The two on the left come first, or the two above.
template <int HS>
__device__ unsigned left_first() {
    return swizzled<PIECES<HS>>(lane_id() % 16, lane_id() / 16) * PIECE_BYTES;
}
template <int HS>
__device__ unsigned upper_first() {
    return swizzled<PIECES<HS>>(lane_id() / 16 * 8 + lane_id() % 8, lane_id() / 8 % 2) * PIECE_BYTES;
}

// A warp's own rows of a tile as left operands of products, read each time.
template <int HS>
struct Rows {
    unsigned at;
    __device__ explicit Rows(unsigned tile) : at(tile + warp_id() * OWN<HS> * ROW_BYTES<HS> + left_first<HS>()) {}
    __device__ void part(unsigned (&to)[4], int i, int k) const {
        load_matrices(to, in_shared<void>(piece_further<PIECES<HS>>(at, 2 * k) + i * STRIP * ROW_BYTES<HS>));
    }
};

// The same, kept in registers.
template <int HS>
struct HeldRows {
    unsigned held[STRIPS<HS>][WIDTH<HS> / STRIP][4];
    __device__ explicit HeldRows(const Rows<HS>& rows) {
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
            for (int k = 0; k < WIDTH<HS> / STRIP; k++) rows.part(held[i][k], i, k);
    }
    __device__ void part(unsigned (&to)[4], int i, int k) const {
#pragma unroll
        for (int r = 0; r < 4; r++) to[r] = held[i][k][r];
    }
};

// sums of the strips, at two neighbouring blocks of 8 columns, += parts times what ldmatrix left in `both`
template <typename T, int STRIPS, int BLOCKS>
__device__ void multiply_add_pair(float (&sums)[STRIPS][BLOCKS][4], int block, const unsigned (&parts)[STRIPS][4],
                                  const unsigned (&both)[4]) {
    const unsigned left[2] = {both[0], both[1]}, right[2] = {both[2], both[3]};
#pragma unroll
    for (int i = 0; i < STRIPS; i++) {
        multiply_add<T>(sums[i][block], parts[i], left);
        multiply_add<T>(sums[i][block + 1], parts[i], right);
    }
}

// products = the own rows times the transpose of OTHERS rows
template <typename T, int HS, int OTHERS, typename Own>
__device__ void multiply_rows(Sums<HS, OTHERS>& products, const Own& own, unsigned rows) {
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
        for (int j = 0; j < OTHERS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) products[i][j][e] = 0;
    const unsigned at = rows + upper_first<HS>();
#pragma unroll
    for (int k = 0; k < WIDTH<HS> / STRIP; k++) {
        unsigned parts[STRIPS<HS>][4], both[4];
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++) own.part(parts[i], i, k);
#pragma unroll
        for (int j = 0; j < OTHERS / 8; j += 2) {
            load_matrices(both, in_shared<void>(piece_further<PIECES<HS>>(at, 2 * k) + j * 8 * ROW_BYTES<HS>));
            multiply_add_pair<T>(products, j, parts, both);
        }
    }
}

// sums += weights times OTHERS rows; the weights are rounded to T
template <typename T, int HS, int OTHERS>
__device__ void add_rows(Sums<HS>& sums, const Sums<HS, OTHERS>& weights, unsigned rows) {
    const unsigned at = rows + left_first<HS>();
#pragma unroll
    for (int k = 0; k < OTHERS / STRIP; k++) {
        unsigned parts[STRIPS<HS>][4], both[4];
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++) to_operand<T>(parts[i], weights[i][2 * k], weights[i][2 * k + 1]);
#pragma unroll
        for (int j = 0; j < WIDTH<HS> / 8; j += 2) {
            load_matrices_transposed(
                both, in_shared<void>(piece_further<PIECES<HS>>(at, j) + k * STRIP * ROW_BYTES<HS>));
            multiply_add_pair<T>(sums, j, parts, both);
        }
    }
}

// The own rows from registers to memory, times `scale`, by way of the tile that they came from: a warp touches no rows
// but its own. `rows` of the block's are there.
template <int HS, int N, typename T>
__device__ void store_rows(T* to, long long stride, unsigned tile, const Sums<HS>& sums,
                           const float (&scale)[STRIPS<HS>][2], int rows) {
    const int first = warp_id() * OWN<HS>;
    const unsigned at = tile + swizzled<PIECES<HS>>(first + lane_id() / 4, 0) * PIECE_BYTES + lane_id() % 4 * 4;
    __syncwarp();  // what was read of the tile is read
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int j = 0; j < WIDTH<HS> / 8; j++) {
                const unsigned pair = packed_pair<T>(sums[i][j][half * 2] * scale[i][half],
                                                     sums[i][j][half * 2 + 1] * scale[i][half]);
                const int further = (i * STRIP + half * 8) * ROW_BYTES<HS>;
                *in_shared<unsigned>(piece_further<PIECES<HS>>(at, j) + further) = pair;
            }
    __syncwarp();
    constexpr int PACKS = HS / N;
#pragma unroll 4
    for (int i = lane_id(); i < OWN<HS> * PACKS; i += WARP) {
        const int row = first + i / PACKS, column = i % PACKS * N;
        if (row >= rows) break;
        const T* from = in_shared<T>(tile + swizzled<PIECES<HS>>(row, column / 8) * PIECE_BYTES) + column % 8;
        store_word(reinterpret_cast<Word<T, N>*>(to + row * stride + column),
                   *reinterpret_cast<const Word<T, N>*>(from));
    }
}

// Over the four lanes that share a row of sums; each gets the result.
template <typename Combine>
__device__ float row_reduce(float value, Combine combine) {
    value = combine(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return combine(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// Scores become exp2(scale2 score - offset), with which they are told apart from their row's largest by one
// multiply-add: a named one, which the compilers would make of two operations as they like. Its rounding is the same
// for the whole row, and of no account; but far away from 0 it is larger than what exp2 can take, and there the largest
// is subtracted first.
constexpr float FAR = 1024;

// Sums are scaled anew when a row's largest has grown by more than this, in powers of two: until then probabilities
// lie above 1, by no more than 16 bits can hold, and nothing is lost.
constexpr float SLACK = 8;

// out = softmax(q k^T) v and lse, the logarithm of the softmax's denominator. A block takes BLOCK_ROWS queries of a
// head and walks over the tiles of keys that they see, the next one on its way.
template <typename T, int HS, int N, bool WINDOW = false>
__global__ void __launch_bounds__(THREADS, PER_SM)
    attention_forward(T* out, float* lse, const T* q, const T* k, const T* v,
                      const __grid_constant__ Many<long long, 3> q_strides,
                      const __grid_constant__ Many<long long, 3> k_strides,
                      const __grid_constant__ Many<long long, 3> v_strides, int heads, int tokens, int NH, int NKV,
                      float scale, bool causal, int window) {
    constexpr int QUERIES = BLOCK_ROWS<HS>, KEYS = TILE, TILE_BYTES = TILE * ROW_BYTES<HS>;
    extern __shared__ __align__(128) unsigned char shared[];
    const unsigned q_tile = shared_address(shared), stages = q_tile + QUERIES * ROW_BYTES<HS>;  // each of k and v

    const int tiles = (tokens + QUERIES - 1) / QUERIES;
    const Turn turn(heads, tiles);
    const int b = turn.head / NH, head = turn.head % NH, kv_head = head / (NH / NKV);
    const int first_query = (tiles - 1 - turn.tile) * QUERIES;  // those that see most keys begin first
    const int keys = causal ? min(tokens, first_query + QUERIES) : tokens;
    const int own_query = first_query + warp_id() * OWN<HS>;
    const Copier<HS, N, T> from_q(q + b * q_strides[0] + head * q_strides[2], q_strides[1]);
    const Copier<HS, N, T> from_k(k + b * k_strides[0] + kv_head * k_strides[2], k_strides[1]);
    const Copier<HS, N, T> from_v(v + b * v_strides[0] + kv_head * v_strides[2], v_strides[1]);
    auto copy_stage = [&](int first_key) {
        if (first_key < keys) {
            const unsigned stage = stages + first_key / KEYS % 2 * 2 * TILE_BYTES;
            from_k.template copy<KEYS>(stage, first_key, tokens);
            from_v.template copy<KEYS>(stage + TILE_BYTES, first_key, tokens);
        }
        close_copies();
    };
    from_q.template copy<QUERIES>(q_tile, first_query, tokens);
    close_copies();
    const int begin = WINDOW ? first_seen(first_query, window) / KEYS * KEYS : 0;
    copy_stage(begin);
    wait_copies<1>();
    __syncthreads();
    const HeldRows<HS> queries(Rows<HS>{q_tile});

    Sums<HS> sums = {};
    float largest[STRIPS<HS>][2], denominator[STRIPS<HS>][2] = {};
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++) largest[i][0] = largest[i][1] = MINUS_INFINITY;
    const float scale2 = scale * LOG2_E, slack = SLACK / scale2;

    for (int first_key = begin; first_key < keys; first_key += KEYS) {
        wait_copies<0>();
        __syncthreads();  // this stage is there, and the other one done with
        copy_stage(first_key + KEYS);
        if (causal && first_key >= own_query + OWN<HS>) continue;  // none of the own rows sees any
        if (WINDOW && first_key + KEYS <= first_seen(own_query, window)) continue;
        const unsigned k_tile = stages + first_key / KEYS % 2 * 2 * TILE_BYTES;

        Sums<HS, KEYS> scores;
        multiply_rows<T, HS, KEYS>(scores, queries, k_tile);
        if (first_key + KEYS > (causal ? own_query + 1 : tokens)) {
            seldom();
#pragma unroll
            for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int query = own_query + i * STRIP + e / 2 * 8 + lane_id() / 4;
                    const int visible = (causal ? min(query + 1, tokens) : tokens) - first_key - lane_id() % 4 * 2;
#pragma unroll
                    for (int j = 0; j < KEYS / 8; j++)
                        if (j * 8 + e % 2 >= visible) scores[i][j][e] = MINUS_INFINITY;
                }
        }

        if (WINDOW && first_key < first_seen(own_query + OWN<HS> - 1, window)) {
            seldom();
#pragma unroll
            for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int query = own_query + i * STRIP + e / 2 * 8 + lane_id() / 4;
                    const int behind = query - window - first_key - lane_id() % 4 * 2;
#pragma unroll
                    for (int j = 0; j < KEYS / 8; j++)
                        if (j * 8 + e % 2 <= behind) scores[i][j][e] = MINUS_INFINITY;
                }
        }

        float most[STRIPS<HS>][2], offset[STRIPS<HS>][2];
        bool grown = false, far = false;
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                most[i][half] = largest[i][half];
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
                    most[i][half] = fmaxf(most[i][half], fmaxf(scores[i][j][half * 2], scores[i][j][half * 2 + 1]));
                most[i][half] = row_reduce(most[i][half], Max{});
                grown |= most[i][half] > largest[i][half] + slack;
            }
        if (__any_sync(ALL_LANES, grown)) {
            seldom();
#pragma unroll
            for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const bool blind = WINDOW && most[i][half] == MINUS_INFINITY;  // nothing is seen yet
                    const float correction = exp2_approx(blind ? 0 : (largest[i][half] - most[i][half]) * scale2);
                    largest[i][half] = most[i][half];
                    denominator[i][half] *= correction;
#pragma unroll
                    for (int j = 0; j < WIDTH<HS> / 8; j++)
                        sums[i][j][half * 2] *= correction, sums[i][j][half * 2 + 1] *= correction;
                }
        }
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                offset[i][half] = largest[i][half] * scale2;
                far |= fabsf(offset[i][half]) > FAR;
            }
        if (__any_sync(ALL_LANES, far)) {
            seldom();
#pragma unroll
            for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    offset[i][e / 2] = 0;
#pragma unroll
                    for (int j = 0; j < KEYS / 8; j++)
                        if (!WINDOW || largest[i][e / 2] != MINUS_INFINITY) scores[i][j][e] -= largest[i][e / 2];
                }
        }
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    scores[i][j][e] = exp2_approx(fmaf(scores[i][j][e], scale2, -offset[i][e / 2]));
                    denominator[i][e / 2] += scores[i][j][e];
                }
        add_rows<T, HS, KEYS>(sums, scores, k_tile + TILE_BYTES);
    }

    float reciprocal[STRIPS<HS>][2];
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = own_query + i * STRIP + half * 8 + lane_id() / 4;
            const float sum = row_reduce(denominator[i][half], Sum{});
            reciprocal[i][half] = 1 / sum;
            if (query < tokens && lane_id() % 4 == 0)
                lse[turn.head * (long long)tokens + query] = largest[i][half] * scale + logf(sum);
        }
    out += ((b * (long long)tokens + first_query) * NH + head) * HS;
    store_rows<HS, N>(out, (long long)NH * HS, q_tile, sums, reciprocal, tokens - first_query);
}

// For each query of each head, in `padded` places for its tokens: lse in base 2, and after all of those, delta, the sum
// over HS of dout * out; 0 where there is no query, whose q and dout are 0 too. A warp takes 32 queries of a head, some
// lanes a query.
template <typename T, int HS, int N>
__global__ void __launch_bounds__(THREADS)
    attention_statistics(float* statistics, const T* dout, const T* out, const float* lse, int heads, int tokens,
                         int padded, int NH) {
    constexpr int PACKS = HS / N;
    constexpr int LANES = PACKS > 16 ? 32 : PACKS > 8 ? 16 : PACKS > 4 ? 8 : PACKS > 2 ? 4 : PACKS > 1 ? 2 : 1;
    constexpr int AT_ONCE = WARP / LANES;
    const long long place = (blockIdx.x * (long long)WARPS + warp_id()) * WARP;
    const int row = place / padded, first = place % padded;  // of all heads; its query
    if (row >= heads) return;
    const long long begin = ((row / NH * (long long)tokens + first) * NH + row % NH) * HS;
    float delta = 0;
#pragma unroll 4
    for (int i = 0; i < LANES; i++) {
        const int query = i * AT_ONCE + lane_id() / LANES;
        float sum = 0;
        if (first + query < tokens)
            for (int d = lane_id() % LANES * N; d < HS; d += LANES * N) {
                Packed<float, N> x = load_floats<N>(dout + begin + query * ((long long)NH * HS) + d);
                Packed<float, N> y = load_floats<N>(out + begin + query * ((long long)NH * HS) + d);
#pragma unroll
                for (int e = 0; e < N; e++) sum += x[e] * y[e];
            }
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2)
            sum += __shfl_xor_sync(ALL_LANES, sum, distance);
        sum = __shfl_sync(ALL_LANES, sum, lane_id() % AT_ONCE * LANES);
        if (lane_id() / AT_ONCE == i) delta = sum;
    }
    const int query = first + lane_id();
    const bool inside = query < tokens;
    statistics[place + lane_id()] = inside ? lse[row * (long long)tokens + query] * LOG2_E : 0;
    statistics[heads * (long long)padded + place + lane_id()] = delta;
}

// dk = scale ds^T q and dv = p^T dout. A block takes BLOCK_ROWS keys of a key/value head and walks over the tiles of
// queries that see them, of all heads that share it: nobody else adds to these rows. Scores and their gradients are
// worked out transposed, so that the lanes that have them are those that need them for the sums.
template <typename T, int HS, int N, bool WINDOW = false>
__global__ void __launch_bounds__(THREADS)
    attention_dkdv(T* dk, T* dv, const T* dout, const T* q, const T* k, const T* v, const float* statistics,
                   const __grid_constant__ Many<long long, 3> dk_strides,
                   const __grid_constant__ Many<long long, 3> dv_strides,
                   const __grid_constant__ Many<long long, 3> q_strides,
                   const __grid_constant__ Many<long long, 3> k_strides,
                   const __grid_constant__ Many<long long, 3> v_strides, int kv_heads, int tokens, int padded, int NH,
                   int NKV, float scale, bool causal, int window) {
    constexpr int KEYS = BLOCK_ROWS<HS>, QUERIES = TILE, TILE_BYTES = TILE * ROW_BYTES<HS>;
    constexpr int STATISTICS = QUERIES * 4;  // bytes
    constexpr int STAGE = 2 * TILE_BYTES + 2 * STATISTICS;
    extern __shared__ __align__(128) unsigned char shared[];
    const unsigned k_tile = shared_address(shared), v_tile = k_tile + KEYS * ROW_BYTES<HS>;
    const unsigned stages = v_tile + KEYS * ROW_BYTES<HS>;  // each of q, dout, their lse2 and delta

    const Turn turn(kv_heads, (tokens + KEYS - 1) / KEYS);
    const int b = turn.head / NKV, kv_head = turn.head % NKV, group = NH / NKV;
    const int first_key = turn.tile * KEYS;  // causal: the first keys are seen most, and begin first
    const int own_key = first_key + warp_id() * OWN<HS>;
    const int begin = causal ? first_key / QUERIES * QUERIES : 0;
    const int end = WINDOW ? min(tokens, first_key + KEYS - 1 + window) : tokens;  // no later query sees any of them
    const int steps = (end - begin + QUERIES - 1) / QUERIES * group;
    const long long dout_stride = (long long)NH * HS;
    const Copier<HS, N, T> from_k(k + b * k_strides[0] + kv_head * k_strides[2], k_strides[1]);
    const Copier<HS, N, T> from_v(v + b * v_strides[0] + kv_head * v_strides[2], v_strides[1]);
    Copier<HS, N, T> from_q(q + b * q_strides[0] + kv_head * group * q_strides[2], q_strides[1]);
    Copier<HS, N, T> from_dout(dout + b * (tokens * dout_stride) + kv_head * group * HS, dout_stride);
    statistics += (b * (long long)NH + kv_head * group) * padded;
    const long long to_delta = (long long)kv_heads * group * padded;

    int coming = begin;  // the query that the next stage begins with
    auto copy_stage = [&](int step) {
        if (step < steps) {
            const unsigned stage = stages + step % 2 * STAGE;
            from_q.template copy<QUERIES>(stage, coming, tokens);
            from_dout.template copy<QUERIES>(stage + TILE_BYTES, coming, tokens);
            constexpr int QUADS = QUERIES / 4;  // of 16 bytes
            if (threadIdx.x < 2 * QUADS)
                copy_async<16>(in_shared<float>(stage + 2 * TILE_BYTES + threadIdx.x * 16),
                               statistics + threadIdx.x / QUADS * to_delta + coming + threadIdx.x % QUADS * 4);
            coming += QUERIES;
            if (coming >= end) {  // on to the next head
                coming = begin;
                from_q.from += q_strides[2];
                from_dout.from += HS;
                statistics += padded;
            }
        }
        close_copies();
    };
    from_k.template copy<KEYS>(k_tile, first_key, tokens);
    from_v.template copy<KEYS>(v_tile, first_key, tokens);
    copy_stage(0);
    wait_copies<0>();
    __syncthreads();
    const HeldRows<HS> keys(Rows<HS>{k_tile});
    const Rows<HS> values(v_tile);

    Sums<HS> dk_sums = {}, dv_sums = {};
    const float scale2 = scale * LOG2_E;
    int first_query = begin;
    for (int step = 0; step < steps; step++) {
        wait_copies<0>();
        __syncthreads();  // this stage is there, and the other one done with
        copy_stage(step + 1);
        const unsigned q_tile = stages + step % 2 * STAGE, dout_tile = q_tile + TILE_BYTES;
        const float2* lse2 = in_shared<const float2>(dout_tile + TILE_BYTES + lane_id() % 4 * 8);
        const float2* delta = in_shared<const float2>(dout_tile + TILE_BYTES + STATISTICS + lane_id() % 4 * 8);
#pragma unroll 1
        for (int slice = 0; slice < QUERIES; slice += DKDV_SLICE) {
            const int ahead = first_query + slice - own_key;
            if (causal && ahead + DKDV_SLICE <= 0) continue;  // none sees any of the own rows
            if (WINDOW && ahead - (OWN<HS> - 1) >= window) break;  // nor does any
            Sums<HS, DKDV_SLICE> p, ds;
            multiply_rows<T, HS, DKDV_SLICE>(p, keys, q_tile + slice * ROW_BYTES<HS>);
#pragma unroll
            for (int j = 0; j < DKDV_SLICE / 8; j++) {
                const float2 offset = lse2[slice / 2 + j * 4];
#pragma unroll
                for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        p[i][j][e] = exp2_approx(fmaf(p[i][j][e], scale2, -(e % 2 ? offset.y : offset.x)));
            }
            if (causal && ahead < OWN<HS> - 1) {
                seldom();
#pragma unroll
                for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int hidden = i * STRIP + e / 2 * 8 + lane_id() / 4 - ahead - lane_id() % 4 * 2 - e % 2;
#pragma unroll
                        for (int j = 0; j < DKDV_SLICE / 8; j++)
                            if (j * 8 < hidden) p[i][j][e] = 0;
                    }
            }
            if (WINDOW && ahead + DKDV_SLICE - 1 >= window) {
                seldom();
#pragma unroll
                for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int key = i * STRIP + e / 2 * 8 + lane_id() / 4;
                        const int seen = key + window - ahead - lane_id() % 4 * 2 - e % 2;
#pragma unroll
                        for (int j = 0; j < DKDV_SLICE / 8; j++)
                            if (j * 8 >= seen) p[i][j][e] = 0;
                    }
            }
            add_rows<T, HS, DKDV_SLICE>(dv_sums, p, dout_tile + slice * ROW_BYTES<HS>);
            multiply_rows<T, HS, DKDV_SLICE>(ds, values, dout_tile + slice * ROW_BYTES<HS>);
#pragma unroll
            for (int j = 0; j < DKDV_SLICE / 8; j++) {
                const float2 offset = delta[slice / 2 + j * 4];
#pragma unroll
                for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        ds[i][j][e] = p[i][j][e] * (ds[i][j][e] - (e % 2 ? offset.y : offset.x));
            }
            add_rows<T, HS, DKDV_SLICE>(dk_sums, ds, q_tile + slice * ROW_BYTES<HS>);
        }
        first_query += QUERIES;
        if (first_query >= end) first_query = begin;
    }

    float scales[STRIPS<HS>][2], ones[STRIPS<HS>][2];
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++) scales[i][0] = scales[i][1] = scale, ones[i][0] = ones[i][1] = 1;
    dk += b * dk_strides[0] + first_key * dk_strides[1] + kv_head * dk_strides[2];
    dv += b * dv_strides[0] + first_key * dv_strides[1] + kv_head * dv_strides[2];
    store_rows<HS, N>(dk, dk_strides[1], k_tile, dk_sums, scales, tokens - first_key);
    store_rows<HS, N>(dv, dv_strides[1], v_tile, dv_sums, ones, tokens - first_key);
}

// dq = scale ds k. A block takes BLOCK_ROWS queries of a head and walks over the tiles of keys that they see.
template <typename T, int HS, int N, bool WINDOW = false>
__global__ void __launch_bounds__(THREADS, PER_SM)
    attention_dq(T* dq, const T* dout, const T* q, const T* k, const T* v, const float* statistics,
                 const __grid_constant__ Many<long long, 3> dq_strides,
                 const __grid_constant__ Many<long long, 3> q_strides,
                 const __grid_constant__ Many<long long, 3> k_strides,
                 const __grid_constant__ Many<long long, 3> v_strides, int heads, int tokens, int padded, int NH,
                 int NKV, float scale, bool causal, int window) {
    constexpr int QUERIES = BLOCK_ROWS<HS>, KEYS = TILE, TILE_BYTES = TILE * ROW_BYTES<HS>;
    extern __shared__ __align__(128) unsigned char shared[];
    const unsigned q_tile = shared_address(shared), dout_tile = q_tile + QUERIES * ROW_BYTES<HS>;
    const unsigned stages = dout_tile + QUERIES * ROW_BYTES<HS>;  // each of k and v

    const int tiles = (tokens + QUERIES - 1) / QUERIES;
    const Turn turn(heads, tiles);
    const int b = turn.head / NH, head = turn.head % NH, kv_head = head / (NH / NKV);
    const int first_query = (tiles - 1 - turn.tile) * QUERIES;  // those that see most keys begin first
    const int keys = causal ? min(tokens, first_query + QUERIES) : tokens;
    const int own_query = first_query + warp_id() * OWN<HS>;
    const long long dout_stride = (long long)NH * HS;
    const Copier<HS, N, T> from_q(q + b * q_strides[0] + head * q_strides[2], q_strides[1]);
    const Copier<HS, N, T> from_dout(dout + b * (tokens * dout_stride) + head * HS, dout_stride);
    const Copier<HS, N, T> from_k(k + b * k_strides[0] + kv_head * k_strides[2], k_strides[1]);
    const Copier<HS, N, T> from_v(v + b * v_strides[0] + kv_head * v_strides[2], v_strides[1]);
    auto copy_stage = [&](int first_key) {
        if (first_key < keys) {
            const unsigned stage = stages + first_key / KEYS % 2 * 2 * TILE_BYTES;
            from_k.template copy<KEYS>(stage, first_key, tokens);
            from_v.template copy<KEYS>(stage + TILE_BYTES, first_key, tokens);
        }
        close_copies();
    };
    from_q.template copy<QUERIES>(q_tile, first_query, tokens);
    from_dout.template copy<QUERIES>(dout_tile, first_query, tokens);
    close_copies();
    const int begin = WINDOW ? first_seen(first_query, window) / KEYS * KEYS : 0;
    copy_stage(begin);

    float lse2[STRIPS<HS>][2], delta[STRIPS<HS>][2];
    statistics += turn.head * (long long)padded + own_query + lane_id() / 4;
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            lse2[i][half] = statistics[i * STRIP + half * 8];
            delta[i][half] = statistics[heads * (long long)padded + i * STRIP + half * 8];
        }
    wait_copies<1>();
    __syncthreads();
    const HeldRows<HS> queries(Rows<HS>{q_tile});
    const Rows<HS> douts(dout_tile);

    Sums<HS> sums = {};
    const float scale2 = scale * LOG2_E;
    for (int first_key = begin; first_key < keys; first_key += KEYS) {
        wait_copies<0>();
        __syncthreads();  // this stage is there, and the other one done with
        copy_stage(first_key + KEYS);
        const unsigned k_tile = stages + first_key / KEYS % 2 * 2 * TILE_BYTES;
#pragma unroll 1
        for (int slice = 0; slice < KEYS; slice += DQ_SLICE) {
            const int ahead = first_key + slice - own_query;
            if (causal && ahead >= OWN<HS>) break;  // none of the own rows sees any
            if (WINDOW && ahead + DQ_SLICE <= 1 - window) continue;  // nor does any
            Sums<HS, DQ_SLICE> p, ds;
            multiply_rows<T, HS, DQ_SLICE>(p, queries, k_tile + slice * ROW_BYTES<HS>);
            multiply_rows<T, HS, DQ_SLICE>(ds, douts, k_tile + TILE_BYTES + slice * ROW_BYTES<HS>);
#pragma unroll
            for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                for (int j = 0; j < DQ_SLICE / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        p[i][j][e] = exp2_approx(fmaf(p[i][j][e], scale2, -lse2[i][e / 2]));
            if (causal ? ahead + DQ_SLICE > 1 : first_key + slice + DQ_SLICE > tokens) {
                seldom();
#pragma unroll
                for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int query = own_query + i * STRIP + e / 2 * 8 + lane_id() / 4;
                        const int visible = (causal ? min(query + 1, tokens) : tokens) - first_key - slice;
#pragma unroll
                        for (int j = 0; j < DQ_SLICE / 8; j++)
                            if (j * 8 + lane_id() % 4 * 2 + e % 2 >= visible) p[i][j][e] = 0;
                    }
            }
            if (WINDOW && ahead + window < OWN<HS>) {
                seldom();
#pragma unroll
                for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int behind = i * STRIP + e / 2 * 8 + lane_id() / 4 - window - ahead;
#pragma unroll
                        for (int j = 0; j < DQ_SLICE / 8; j++)
                            if (j * 8 + lane_id() % 4 * 2 + e % 2 <= behind) p[i][j][e] = 0;
                    }
            }
#pragma unroll
            for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                for (int j = 0; j < DQ_SLICE / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) ds[i][j][e] = p[i][j][e] * (ds[i][j][e] - delta[i][e / 2]);
            add_rows<T, HS, DQ_SLICE>(sums, ds, k_tile + slice * ROW_BYTES<HS>);
        }
    }

    float scales[STRIPS<HS>][2];
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++) scales[i][0] = scales[i][1] = scale;
    dq += b * dq_strides[0] + first_query * dq_strides[1] + head * dq_strides[2];
    store_rows<HS, N>(dq, dq_strides[1], q_tile, sums, scales, tokens - first_query);
}
