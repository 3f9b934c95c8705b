#include "common/async_copy.cuh"
#include "common/many.cuh"
#include "common/math.cuh"
#include "common/matrix.cuh"
#include "common/operands.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"
#include "common/swizzle.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP;  // of a block
constexpr int STRIP = 16;                         // rows of a tensor core's product
constexpr int PIECE = 8;                          // elements of 16 bytes
constexpr int TILE = 64;                          // rows of a tile that a block walks over
constexpr int SECTION = 64;                       // heads whose blocks run together: their tiles stay in the L2 cache

// Columns of a tile: a head, filled up with zeros to what a product takes at once.
template <int HS>
constexpr int WIDTH = (HS + STRIP - 1) / STRIP * STRIP;

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

template <int HS>
__device__ int place(int row, int column) {
    return swizzled<WIDTH<HS> / PIECE>(row, column / PIECE) * PIECE + column % PIECE;
}

// ROWS rows of HS elements on their way into a tile, N neighbouring elements a copy; zeros from row `rows` on, and from
// column HS on. Single elements of 16 bits no asynchronous copy takes.
template <int HS, int ROWS, int N, typename T>
__device__ void copy_rows(T* tile, const T* from, long long stride, int rows) {
    constexpr int PACKS = WIDTH<HS> / N;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * PACKS; i += THREADS) {
        const int row = i / PACKS, column = i % PACKS * N;
        const bool inside = row < rows && column < HS;
        T* to = tile + place<HS>(row, column);
        const T* at = inside ? from + row * stride + column : from;
        if constexpr (N > 1)
            copy_async_or_zero<N * sizeof(T)>(to, at, inside);
        else
            *to = inside ? *at : T(0.0f);
    }
}

// A warp's own rows of a tile as left operands of products.
template <int HS>
struct Rows {
    unsigned at[STRIPS<HS>][WIDTH<HS> / STRIP][4];

    template <typename T>
    __device__ void load(const T* tile, int first) {
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
            for (int k = 0; k < WIDTH<HS> / STRIP; k++) read(at[i][k], tile, first, i, k);
    }
    template <typename T>
    __device__ static void read(unsigned (&part)[4], const T* tile, int first, int i, int k) {
        load_matrices(part, tile + place<HS>(first + i * STRIP + lane_id() % 16, k * STRIP + lane_id() / 16 * PIECE));
    }
    __device__ void part(unsigned (&to)[4], int i, int k) const {
#pragma unroll
        for (int r = 0; r < 4; r++) to[r] = at[i][k][r];
    }
};

// The same, read from the tile each time.
template <int HS, typename T>
struct RowsInTile {
    const T* tile;
    int first;
    __device__ void part(unsigned (&to)[4], int i, int k) const { Rows<HS>::read(to, tile, first, i, k); }
};

// products = the own rows times the transpose of OTHERS rows of a tile, from `first` on
template <typename T, int HS, int OTHERS, typename Own>
__device__ void multiply_rows(float (&products)[STRIPS<HS>][OTHERS / 8][4], const Own& own, const T* tile, int first) {
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
        for (int j = 0; j < OTHERS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) products[i][j][e] = 0;
#pragma unroll
    for (int k = 0; k < WIDTH<HS> / STRIP; k++) {
        unsigned parts[STRIPS<HS>][4];
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++) own.part(parts[i], i, k);
#pragma unroll
        for (int j = 0; j < OTHERS / 8; j += 2) {
            unsigned both[4];  // of two blocks of 8 rows
            const int row = first + j * 8 + lane_id() / 16 * 8 + lane_id() % 8;
            load_matrices(both, tile + place<HS>(row, k * STRIP + lane_id() / 8 % 2 * PIECE));
            const unsigned left[2] = {both[0], both[1]}, right[2] = {both[2], both[3]};
#pragma unroll
            for (int i = 0; i < STRIPS<HS>; i++) {
                multiply_add<T>(products[i][j], parts[i], left);
                multiply_add<T>(products[i][j + 1], parts[i], right);
            }
        }
    }
}

// sums += weights times OTHERS rows of a tile, from `first` on; the weights are rounded to T
template <typename T, int HS, int OTHERS>
__device__ void add_rows(float (&sums)[STRIPS<HS>][WIDTH<HS> / 8][4],
                         const float (&weights)[STRIPS<HS>][OTHERS / 8][4], const T* tile, int first) {
#pragma unroll
    for (int k = 0; k < OTHERS / STRIP; k++) {
        unsigned parts[STRIPS<HS>][4];
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++) to_operand<T>(parts[i], weights[i][2 * k], weights[i][2 * k + 1]);
#pragma unroll
        for (int j = 0; j < WIDTH<HS> / 8; j += 2) {
            unsigned both[4];  // of two blocks of 8 columns
            const int row = first + k * STRIP + lane_id() % 16;
            load_matrices_transposed(both, tile + place<HS>(row, j * 8 + lane_id() / 16 * PIECE));
            const unsigned left[2] = {both[0], both[1]}, right[2] = {both[2], both[3]};
#pragma unroll
            for (int i = 0; i < STRIPS<HS>; i++) {
                multiply_add<T>(sums[i][j], parts[i], left);
                multiply_add<T>(sums[i][j + 1], parts[i], right);
            }
        }
    }
}

// The own rows from registers to memory, times `scale`, by way of the tile that they came from: no other warp's rows
// are touched. `rows` of the block's are there.
template <int HS, int N, typename T>
__device__ void store_rows(T* to, long long stride, T* tile, const float (&sums)[STRIPS<HS>][WIDTH<HS> / 8][4],
                           const float (&scale)[STRIPS<HS>][2], int rows) {
    const int first = warp_id() * OWN<HS>;
    __syncwarp();  // what was read of the tile is read
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int j = 0; j < WIDTH<HS> / 8; j++) {
                const int row = first + i * STRIP + half * 8 + lane_id() / 4;
                from_float_pair(tile + place<HS>(row, j * 8 + lane_id() % 4 * 2),
                                sums[i][j][half * 2] * scale[i][half], sums[i][j][half * 2 + 1] * scale[i][half]);
            }
    __syncwarp();
    constexpr int PACKS = HS / N;
#pragma unroll 4
    for (int i = lane_id(); i < OWN<HS> * PACKS; i += WARP) {
        const int row = first + i / PACKS, column = i % PACKS * N;
        if (row >= rows) break;
        const Word<T, N> word = *reinterpret_cast<const Word<T, N>*>(tile + place<HS>(row, column));
        store_word(reinterpret_cast<Word<T, N>*>(to + row * stride + column), word);
    }
}

// Over the four lanes that share a row of sums; each gets the result.
template <typename Combine>
__device__ float row_reduce(float value, Combine combine) {
    value = combine(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return combine(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// out = softmax(q k^T) v and lse, the logarithm of the softmax's denominator. A block takes BLOCK_ROWS queries of a
// head and walks over the tiles of keys that they see, the next one on its way. A score's distance from its row's
// largest is taken before it is scaled: that of the largest is 0 however large it is.
template <typename T, int HS, int N>
__global__ void __launch_bounds__(THREADS)
    attention_forward(T* out, float* lse, const T* q, const T* k, const T* v, const __grid_constant__ Many<long long, 3> q_strides,
                      const __grid_constant__ Many<long long, 3> k_strides, const __grid_constant__ Many<long long, 3> v_strides, int heads,
                      int tokens, int NH, int NKV, float scale, bool causal) {
    constexpr int QUERIES = BLOCK_ROWS<HS>, KEYS = TILE, TILE_SIZE = KEYS * WIDTH<HS>;
    extern __shared__ uint4 shared[];
    T* q_tile = reinterpret_cast<T*>(shared);
    T* stages = q_tile + QUERIES * WIDTH<HS>;  // of one tile of k and one of v each

    const int tiles = (tokens + QUERIES - 1) / QUERIES;
    const Turn turn(heads, tiles);
    const int b = turn.head / NH, head = turn.head % NH, kv_head = head / (NH / NKV);
    const int first_query = (tiles - 1 - turn.tile) * QUERIES;  // those that see most keys begin first
    const int keys = causal ? min(tokens, first_query + QUERIES) : tokens;
    const int own_query = first_query + warp_id() * OWN<HS>;
    q += b * q_strides[0] + first_query * q_strides[1] + head * q_strides[2];
    k += b * k_strides[0] + kv_head * k_strides[2];
    v += b * v_strides[0] + kv_head * v_strides[2];

    auto copy_stage = [&](int first_key) {
        if (first_key < keys) {
            T* stage = stages + first_key / KEYS % 2 * 2 * TILE_SIZE;
            copy_rows<HS, KEYS, N>(stage, k + first_key * k_strides[1], k_strides[1], tokens - first_key);
            copy_rows<HS, KEYS, N>(stage + TILE_SIZE, v + first_key * v_strides[1], v_strides[1], tokens - first_key);
        }
        close_copies();
    };
    copy_rows<HS, QUERIES, N>(q_tile, q, q_strides[1], tokens - first_query);
    close_copies();
    copy_stage(0);
    wait_copies<1>();
    __syncthreads();
    Rows<HS> queries;
    queries.load(q_tile, warp_id() * OWN<HS>);

    float sums[STRIPS<HS>][WIDTH<HS> / 8][4] = {}, largest[STRIPS<HS>][2], denominator[STRIPS<HS>][2] = {};
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++) largest[i][0] = largest[i][1] = MINUS_INFINITY;
    const float scale2 = scale * LOG2_E;

    for (int first_key = 0; first_key < keys; first_key += KEYS) {
        wait_copies<0>();
        __syncthreads();  // this stage is there, and the other one done with
        copy_stage(first_key + KEYS);
        if (causal && first_key >= own_query + OWN<HS>) continue;  // none of the own rows sees any
        const T* k_tile = stages + first_key / KEYS % 2 * 2 * TILE_SIZE;

        float scores[STRIPS<HS>][KEYS / 8][4];
        multiply_rows<T, HS, KEYS>(scores, queries, k_tile, 0);
        if (first_key + KEYS > (causal ? own_query + 1 : tokens)) {
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
#pragma unroll
        for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float most = largest[i][half], sum = 0;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
                    most = fmaxf(most, fmaxf(scores[i][j][half * 2], scores[i][j][half * 2 + 1]));
                most = row_reduce(most, Max{});
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int e = half * 2; e < half * 2 + 2; e++) {
                        scores[i][j][e] = exp2_approx((scores[i][j][e] - most) * scale2);
                        sum += scores[i][j][e];
                    }
                const float correction = exp2_approx((largest[i][half] - most) * scale2);
                largest[i][half] = most;
                denominator[i][half] = denominator[i][half] * correction + sum;
#pragma unroll
                for (int j = 0; j < WIDTH<HS> / 8; j++)
                    sums[i][j][half * 2] *= correction, sums[i][j][half * 2 + 1] *= correction;
            }
        add_rows<T, HS, KEYS>(sums, scores, k_tile + TILE_SIZE, 0);
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
// over HS of dout * out. Where there is no query, infinity and 0: it then counts for nothing in dk and dv. A warp takes
// 32 queries of a head, some lanes a query.
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
    statistics[place + lane_id()] = inside ? lse[row * (long long)tokens + query] * LOG2_E : -MINUS_INFINITY;
    statistics[heads * (long long)padded + place + lane_id()] = delta;
}

// dk = scale ds^T q and dv = p^T dout. A block takes BLOCK_ROWS keys of a key/value head and walks over the tiles of
// queries that see them, of all heads that share it: nobody else adds to these rows. Scores and their gradients are
// worked out transposed, so that the lanes that have them are those that need them for the sums.
template <typename T, int HS, int N>
__global__ void __launch_bounds__(THREADS)
    attention_dkdv(T* dk, T* dv, const T* dout, const T* q, const T* k, const T* v, const float* statistics,
                   const __grid_constant__ Many<long long, 3> dk_strides, const __grid_constant__ Many<long long, 3> dv_strides,
                   const __grid_constant__ Many<long long, 3> q_strides, const __grid_constant__ Many<long long, 3> k_strides,
                   const __grid_constant__ Many<long long, 3> v_strides, int kv_heads, int tokens, int padded, int NH, int NKV,
                   float scale, bool causal) {
    constexpr int KEYS = BLOCK_ROWS<HS>, QUERIES = TILE, TILE_SIZE = QUERIES * WIDTH<HS>;
    extern __shared__ uint4 shared[];
    T* k_tile = reinterpret_cast<T*>(shared);
    T* v_tile = k_tile + KEYS * WIDTH<HS>;
    T* stages = v_tile + KEYS * WIDTH<HS>;  // of one tile of q and one of dout each
    float* stage_statistics = reinterpret_cast<float*>(stages + 4 * TILE_SIZE);

    const Turn turn(kv_heads, (tokens + KEYS - 1) / KEYS);
    const int b = turn.head / NKV, kv_head = turn.head % NKV, group = NH / NKV;
    const int first_key = turn.tile * KEYS;  // causal: the first keys are seen most, and begin first
    const int own_key = first_key + warp_id() * OWN<HS>;
    const int first_tile = causal ? first_key / QUERIES : 0;
    const int tiles = (tokens + QUERIES - 1) / QUERIES - first_tile;
    const long long dout_stride = (long long)NH * HS;
    k += b * k_strides[0] + first_key * k_strides[1] + kv_head * k_strides[2];
    v += b * v_strides[0] + first_key * v_strides[1] + kv_head * v_strides[2];
    q += b * q_strides[0] + kv_head * group * q_strides[2];
    dout += b * (tokens * dout_stride) + kv_head * group * HS;
    statistics += (b * (long long)NH + kv_head * group) * padded;
    const long long to_delta = (long long)kv_heads * group * padded;

    auto copy_stage = [&](int step) {
        if (step < tiles * group) {
            const int member = step / tiles, first_query = (first_tile + step % tiles) * QUERIES;
            const int rows = tokens - first_query;
            T* stage = stages + step % 2 * 2 * TILE_SIZE;
            copy_rows<HS, QUERIES, N>(stage, q + first_query * q_strides[1] + member * q_strides[2], q_strides[1], rows);
            copy_rows<HS, QUERIES, N>(stage + TILE_SIZE, dout + first_query * dout_stride + member * HS, dout_stride,
                                      rows);
            constexpr int QUADS = QUERIES / 4;  // of 16 bytes
            if (threadIdx.x < 2 * QUADS) {
                const int which = threadIdx.x / QUADS, at = threadIdx.x % QUADS * 4;
                copy_async<16>(stage_statistics + (step % 2 * 2 + which) * QUERIES + at,
                               statistics + which * to_delta + member * (long long)padded + first_query + at);
            }
        }
        close_copies();
    };
    copy_rows<HS, KEYS, N>(k_tile, k, k_strides[1], tokens - first_key);
    copy_rows<HS, KEYS, N>(v_tile, v, v_strides[1], tokens - first_key);
    copy_stage(0);
    wait_copies<0>();
    __syncthreads();
    Rows<HS> keys;
    keys.load(k_tile, warp_id() * OWN<HS>);
    const RowsInTile<HS, T> values{v_tile, warp_id() * OWN<HS>};

    float dk_sums[STRIPS<HS>][WIDTH<HS> / 8][4] = {}, dv_sums[STRIPS<HS>][WIDTH<HS> / 8][4] = {};
    const float scale2 = scale * LOG2_E;
    for (int step = 0; step < tiles * group; step++) {
        wait_copies<0>();
        __syncthreads();  // this stage is there, and the other one done with
        copy_stage(step + 1);
        const int first_query = (first_tile + step % tiles) * QUERIES;
        const T* q_tile = stages + step % 2 * 2 * TILE_SIZE;
        const T* dout_tile = q_tile + TILE_SIZE;
        const float* lse2 = stage_statistics + step % 2 * 2 * QUERIES + lane_id() % 4 * 2;
        const float* delta = lse2 + QUERIES;
#pragma unroll 1
        for (int slice = 0; slice < QUERIES; slice += DKDV_SLICE) {
            if (causal && first_query + slice + DKDV_SLICE <= own_key) continue;  // none sees any of the own rows
            float p[STRIPS<HS>][DKDV_SLICE / 8][4], ds[STRIPS<HS>][DKDV_SLICE / 8][4];
            multiply_rows<T, HS, DKDV_SLICE>(p, keys, q_tile, slice);
            const bool masked = causal && first_query + slice < own_key + OWN<HS> - 1;
#pragma unroll
            for (int j = 0; j < DKDV_SLICE / 8; j++) {
                const float2 lses = *reinterpret_cast<const float2*>(lse2 + slice + j * 8);
#pragma unroll
                for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int key = own_key + i * STRIP + e / 2 * 8 + lane_id() / 4;
                        const int query = first_query + slice + j * 8 + lane_id() % 4 * 2 + e % 2;
                        p[i][j][e] = exp2_approx(p[i][j][e] * scale2 - (e % 2 ? lses.y : lses.x));
                        if (masked && key > query) p[i][j][e] = 0;
                    }
            }
            add_rows<T, HS, DKDV_SLICE>(dv_sums, p, dout_tile, slice);
            multiply_rows<T, HS, DKDV_SLICE>(ds, values, dout_tile, slice);
#pragma unroll
            for (int j = 0; j < DKDV_SLICE / 8; j++) {
                const float2 deltas = *reinterpret_cast<const float2*>(delta + slice + j * 8);
#pragma unroll
                for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) ds[i][j][e] = p[i][j][e] * (ds[i][j][e] - (e % 2 ? deltas.y : deltas.x));
            }
            add_rows<T, HS, DKDV_SLICE>(dk_sums, ds, q_tile, slice);
        }
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
template <typename T, int HS, int N>
__global__ void __launch_bounds__(THREADS)
    attention_dq(T* dq, const T* dout, const T* q, const T* k, const T* v, const float* statistics,
                 const __grid_constant__ Many<long long, 3> dq_strides, const __grid_constant__ Many<long long, 3> q_strides,
                 const __grid_constant__ Many<long long, 3> k_strides, const __grid_constant__ Many<long long, 3> v_strides, int heads,
                 int tokens, int padded, int NH, int NKV, float scale, bool causal) {
    constexpr int QUERIES = BLOCK_ROWS<HS>, KEYS = TILE, TILE_SIZE = KEYS * WIDTH<HS>;
    extern __shared__ uint4 shared[];
    T* q_tile = reinterpret_cast<T*>(shared);
    T* dout_tile = q_tile + QUERIES * WIDTH<HS>;
    T* stages = dout_tile + QUERIES * WIDTH<HS>;  // of one tile of k and one of v each

    const int blocks = (tokens + QUERIES - 1) / QUERIES;
    const Turn turn(heads, blocks);
    const int b = turn.head / NH, head = turn.head % NH, kv_head = head / (NH / NKV);
    const int first_query = (blocks - 1 - turn.tile) * QUERIES;  // those that see most keys begin first
    const int keys = causal ? min(tokens, first_query + QUERIES) : tokens;
    const int own_query = first_query + warp_id() * OWN<HS>;
    const long long dout_stride = (long long)NH * HS;
    q += b * q_strides[0] + first_query * q_strides[1] + head * q_strides[2];
    dout += (b * (long long)tokens + first_query) * dout_stride + head * HS;
    k += b * k_strides[0] + kv_head * k_strides[2];
    v += b * v_strides[0] + kv_head * v_strides[2];

    auto copy_stage = [&](int first_key) {
        if (first_key < keys) {
            T* stage = stages + first_key / KEYS % 2 * 2 * TILE_SIZE;
            copy_rows<HS, KEYS, N>(stage, k + first_key * k_strides[1], k_strides[1], tokens - first_key);
            copy_rows<HS, KEYS, N>(stage + TILE_SIZE, v + first_key * v_strides[1], v_strides[1], tokens - first_key);
        }
        close_copies();
    };
    copy_rows<HS, QUERIES, N>(q_tile, q, q_strides[1], tokens - first_query);
    copy_rows<HS, QUERIES, N>(dout_tile, dout, dout_stride, tokens - first_query);
    close_copies();
    copy_stage(0);

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
    Rows<HS> queries;
    queries.load(q_tile, warp_id() * OWN<HS>);
    const RowsInTile<HS, T> douts{dout_tile, warp_id() * OWN<HS>};

    float sums[STRIPS<HS>][WIDTH<HS> / 8][4] = {};
    const float scale2 = scale * LOG2_E;
    for (int first_key = 0; first_key < keys; first_key += KEYS) {
        wait_copies<0>();
        __syncthreads();  // this stage is there, and the other one done with
        copy_stage(first_key + KEYS);
        const T* k_tile = stages + first_key / KEYS % 2 * 2 * TILE_SIZE;
#pragma unroll 1
        for (int slice = 0; slice < KEYS; slice += DQ_SLICE) {
            if (causal && first_key + slice >= own_query + OWN<HS>) break;  // none of the own rows sees any
            float p[STRIPS<HS>][DQ_SLICE / 8][4], ds[STRIPS<HS>][DQ_SLICE / 8][4];
            multiply_rows<T, HS, DQ_SLICE>(p, queries, k_tile, slice);
            multiply_rows<T, HS, DQ_SLICE>(ds, douts, k_tile + TILE_SIZE, slice);
            const bool masked = first_key + slice + DQ_SLICE > (causal ? own_query + 1 : tokens);
#pragma unroll
            for (int i = 0; i < STRIPS<HS>; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int query = own_query + i * STRIP + e / 2 * 8 + lane_id() / 4;
                    const int visible = (causal ? min(query + 1, tokens) : tokens) - first_key - slice;
#pragma unroll
                    for (int j = 0; j < DQ_SLICE / 8; j++) {
                        float weight = exp2_approx(p[i][j][e] * scale2 - lse2[i][e / 2]);
                        if (masked && j * 8 + lane_id() % 4 * 2 + e % 2 >= visible) weight = 0;
                        ds[i][j][e] = weight * (ds[i][j][e] - delta[i][e / 2]);
                    }
                }
            add_rows<T, HS, DQ_SLICE>(sums, ds, k_tile, slice);
        }
    }

    float scales[STRIPS<HS>][2];
#pragma unroll
    for (int i = 0; i < STRIPS<HS>; i++) scales[i][0] = scales[i][1] = scale;
    dq += b * dq_strides[0] + first_query * dq_strides[1] + head * dq_strides[2];
    store_rows<HS, N>(dq, dq_strides[1], q_tile, sums, scales, tokens - first_query);
}
