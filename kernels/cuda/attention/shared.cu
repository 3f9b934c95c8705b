#include "common/many.cuh"
#include "common/math.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

constexpr int THREADS = 256;  // of a block: 16 groups of 16 lanes, two groups to a warp
constexpr int LANES = 16;     // of a group, which works on the same rows, each lane on other columns
constexpr int GROUPS = THREADS / LANES;
constexpr int QUERIES = 128;            // of a block in forward: 8 rows a group
constexpr int BACKWARD_QUERIES = 64;    // of a tile in backward: 4 rows a group
constexpr int KEYS = 64;                // of a tile
constexpr int PAIR_STRIDE = KEYS + 16;  // of a row of probabilities, so that a warp's two groups meet in no bank
constexpr int QUAD = 4;                 // floats of a 16-byte access of shared memory

// Rows of q, k, v or dout in shared memory are fp32, padded with zeros to a multiple of LANES. The stride lets the
// lanes of a group read 16 bytes each from 16 rows, meeting in no bank.
template <int HS>
constexpr int WIDTH = (HS + LANES - 1) / LANES * LANES;
template <int HS>
constexpr int STRIDE = WIDTH<HS> + QUAD;

// Two blocks to a multiprocessor where their tiles fit.
template <int HS>
constexpr int BLOCKS = HS <= 64 ? 2 : 1;

// A lane's columns of a product that is WIDTH wide: COLUMNS in all, VECTOR neighbours at a time.
template <int HS>
constexpr int COLUMNS = WIDTH<HS> / LANES;
template <int HS>
constexpr int VECTOR = COLUMNS<HS> % 4 == 0 ? 4 : COLUMNS<HS> % 2 == 0 ? 2 : 1;

// The first key that a query sees through its window.
__device__ inline int first_seen(int query, int window) { return max(0, query - window + 1); }

__device__ inline int group() { return threadIdx.x / LANES; }
__device__ inline int lane() { return threadIdx.x % LANES; }

template <int HS>
__device__ int column(int c) {
    return (c / VECTOR<HS> * LANES + lane()) * VECTOR<HS> + c % VECTOR<HS>;
}

// Over the lanes of a group; each gets the result.
template <typename Combine>
__device__ float group_reduce(float value, Combine combine) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        value = combine(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// ROWS rows of HS elements into a tile in shared memory, N neighbouring elements a thread; zeros from row `rows` on.
template <int HS, int ROWS, int N, typename T>
__device__ void load_tile(float* tile, const T* from, long long stride, int rows) {
    constexpr int ROW_PACKS = WIDTH<HS> / N;
#pragma unroll 2
    for (int pack = threadIdx.x; pack < ROWS * ROW_PACKS; pack += THREADS) {
        int row = pack / ROW_PACKS, column = pack % ROW_PACKS * N;
        bool inside = row < rows && column < HS;
        store(tile + row * STRIDE<HS> + column, inside ? load_floats<N>(from + row * stride + column) : filled<N>(0));
    }
}

// products[i][j] = row group + 16 i of tile a times row lane + 16 j of tile b
template <int HS, int ROWS, int OTHERS>
__device__ void multiply_rows(float (&products)[ROWS][OTHERS], const float* a, const float* b) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < OTHERS; j++) products[i][j] = 0;
#pragma unroll 1
    for (int d = 0; d < WIDTH<HS>; d += QUAD) {
        Packed<float, QUAD> others[OTHERS];
#pragma unroll
        for (int j = 0; j < OTHERS; j++) others[j] = load<QUAD>(b + (lane() + j * LANES) * STRIDE<HS> + d);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            Packed<float, QUAD> row = load<QUAD>(a + (group() + i * GROUPS) * STRIDE<HS> + d);
#pragma unroll
            for (int k = 0; k < QUAD; k++)
#pragma unroll
                for (int j = 0; j < OTHERS; j++) products[i][j] += row[k] * others[j][k];
        }
    }
}

// This lane's columns of one row of a tile.
template <int HS>
__device__ void load_columns(float (&values)[COLUMNS<HS>], const float* row) {
#pragma unroll
    for (int c = 0; c < COLUMNS<HS>; c += VECTOR<HS>) {
        Packed<float, VECTOR<HS>> some = load<VECTOR<HS>>(row + column<HS>(c));
#pragma unroll
        for (int k = 0; k < VECTOR<HS>; k++) values[c + k] = some[k];
    }
}

// sums[i] += sum over j of weights[group + 16 i][j] times row j of the tile
template <int HS, int ROWS>
__device__ void add_rows(float (&sums)[ROWS][COLUMNS<HS>], const float* weights, const float* tile) {
#pragma unroll 1
    for (int j = 0; j < KEYS; j += QUAD) {
        float rows[QUAD][COLUMNS<HS>];
#pragma unroll
        for (int k = 0; k < QUAD; k++) load_columns<HS>(rows[k], tile + (j + k) * STRIDE<HS>);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            Packed<float, QUAD> weight = load<QUAD>(weights + (group() + i * GROUPS) * PAIR_STRIDE + j);
#pragma unroll
            for (int k = 0; k < QUAD; k++)
#pragma unroll
                for (int c = 0; c < COLUMNS<HS>; c++) sums[i][c] += weight[k] * rows[k][c];
        }
    }
}

// sums[i] += sum over j of weights[j][4 group + i] times row j of the tile
template <int HS, int ROWS>
__device__ void add_rows_transposed(float (&sums)[QUAD][COLUMNS<HS>], const float* weights, const float* tile) {
#pragma unroll 4
    for (int j = 0; j < ROWS; j++) {
        float row[COLUMNS<HS>];
        load_columns<HS>(row, tile + j * STRIDE<HS>);
        Packed<float, QUAD> weight = load<QUAD>(weights + j * PAIR_STRIDE + group() * QUAD);
#pragma unroll
        for (int i = 0; i < QUAD; i++)
#pragma unroll
            for (int c = 0; c < COLUMNS<HS>; c++) sums[i][c] += weight[i] * row[c];
    }
}

// This lane's columns of a row to memory, times `scale`.
template <int HS, int N, typename T>
__device__ void store_columns(T* row, const float (&values)[COLUMNS<HS>], float scale) {
    constexpr int PACK = N > 1 && WIDTH<HS> == HS ? VECTOR<HS> : 1;
#pragma unroll
    for (int c = 0; c < COLUMNS<HS>; c += PACK) {
        Packed<float, PACK> some;
#pragma unroll
        for (int k = 0; k < PACK; k++) some[k] = values[c + k] * scale;
        if (column<HS>(c) < HS) store_floats(row + column<HS>(c), some);
    }
}

// out = softmax(scale q k^T) v and lse, the logarithm of the softmax's denominator. A block takes QUERIES queries of a
// head and walks over the tiles of keys that they see, with a running maximum and sum of each row; the probabilities of
// a group's rows pass through shared memory from the lanes that own keys to those that own columns.
template <typename T, int HS, int N, bool WINDOW = false>
__global__ void __launch_bounds__(THREADS, BLOCKS<HS>)
    attention_forward(T* out, float* lse, const T* q, const T* k, const T* v,
                      const __grid_constant__ Many<long long, 3> q_strides,
                      const __grid_constant__ Many<long long, 3> k_strides,
                      const __grid_constant__ Many<long long, 3> v_strides, int tokens, int NH, int NKV, float scale,
                      bool causal, int window) {
    constexpr int ROWS = QUERIES / GROUPS, OTHERS = KEYS / LANES;
    extern __shared__ float4 shared[];
    float* q_tile = reinterpret_cast<float*>(shared);
    float* k_tile = q_tile + QUERIES * STRIDE<HS>;
    float* v_tile = k_tile + KEYS * STRIDE<HS>;
    float* p_tile = v_tile + KEYS * STRIDE<HS>;

    const int b = blockIdx.x / NH, head = blockIdx.x % NH, kv_head = head / (NH / NKV);
    const int first_query = (gridDim.y - 1 - blockIdx.y) * QUERIES;  // those that see most keys begin first
    const int keys = causal ? min(tokens, first_query + QUERIES) : tokens;
    q += b * q_strides[0] + first_query * q_strides[1] + head * q_strides[2];
    k += b * k_strides[0] + kv_head * k_strides[2];
    v += b * v_strides[0] + kv_head * v_strides[2];

    float sums[ROWS][COLUMNS<HS>] = {}, largest[ROWS], denominator[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) largest[i] = LOWEST, denominator[i] = 0;
    load_tile<HS, QUERIES, N>(q_tile, q, q_strides[1], tokens - first_query);

    const int begin = WINDOW ? first_seen(first_query, window) / KEYS * KEYS : 0;
    for (int first_key = begin; first_key < keys; first_key += KEYS) {
        __syncthreads();  // the tiles of before are done with
        load_tile<HS, KEYS, N>(k_tile, k + first_key * k_strides[1], k_strides[1], tokens - first_key);
        load_tile<HS, KEYS, N>(v_tile, v + first_key * v_strides[1], v_strides[1], tokens - first_key);
        __syncthreads();

        float scores[ROWS][OTHERS];
        multiply_rows<HS>(scores, q_tile, k_tile);
        const bool all_visible = first_key + KEYS <= (causal ? first_query + 1 : tokens) &&
                                 (!WINDOW || first_key >= first_seen(first_query + QUERIES - 1, window));
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const int query = first_query + group() + i * GROUPS, visible = causal ? min(query + 1, tokens) : tokens;
            const int seen = first_seen(query, window);
            float before = largest[i], sum = 0;
#pragma unroll
            for (int j = 0; j < OTHERS; j++) {
                const int key = first_key + lane() + j * LANES;
                bool masked = !all_visible && (key >= visible || (WINDOW && key < seen));
                scores[i][j] = masked ? LOWEST : scores[i][j] * scale;
                largest[i] = fmaxf(largest[i], scores[i][j]);
            }
            largest[i] = group_reduce(largest[i], Max{});
            const float offset = WINDOW && largest[i] == LOWEST ? 0 : largest[i];  // it may see nothing yet
#pragma unroll
            for (int j = 0; j < OTHERS; j++) {
                float p = exp_approx(scores[i][j] - offset);
                p_tile[(group() + i * GROUPS) * PAIR_STRIDE + lane() + j * LANES] = p;
                sum += p;
            }
            const float correction = exp_approx(before - largest[i]);
            denominator[i] = denominator[i] * correction + sum;
#pragma unroll
            for (int c = 0; c < COLUMNS<HS>; c++) sums[i][c] *= correction;
        }
        __syncwarp();  // a group's probabilities are its own
        add_rows<HS>(sums, p_tile, v_tile);
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = first_query + group() + i * GROUPS;
        const float sum = group_reduce(denominator[i], Sum{});
        if (query >= tokens) continue;
        store_columns<HS, N>(out + ((b * (long long)tokens + query) * NH + head) * HS, sums[i], 1 / sum);
        if (lane() == 0) lse[(b * (long long)NH + head) * tokens + query] = largest[i] + logf(sum);
    }
}

// delta = the sum over HS of dout * out, in the order of lse: [sequence][head][query]. A warp a query.
template <typename T, int HS, int N>
__global__ void __launch_bounds__(THREADS)
    attention_delta(float* delta, const T* dout, const T* out, int tokens, int NH, int rows) {
    const int row = blockIdx.x * (THREADS / WARP) + warp_id();  // (sequence, query, head)
    if (row >= rows) return;
    float sum = 0;
    for (int d = lane_id() * N; d < HS; d += WARP * N) {
        Packed<float, N> x = load_floats<N>(dout + row * (long long)HS + d);
        Packed<float, N> y = load_floats<N>(out + row * (long long)HS + d);
#pragma unroll
        for (int k = 0; k < N; k++) sum += x[k] * y[k];
    }
    sum = warp_sum(sum);
    const int b = row / NH / tokens, query = row / NH % tokens, head = row % NH;
    if (lane_id() == 0) delta[(b * (long long)NH + head) * tokens + query] = sum;
}

// Of this thread's 4 x 4 pairs of query and key: p = exp(scale q k - lse), and ds = p (dout v - delta), which is the
// gradient of the scaled score; 0 where the query does not see the key. Row and column of a pair as in multiply_rows.
struct Pairs {
    static constexpr int ROWS = BACKWARD_QUERIES / GROUPS, OTHERS = KEYS / LANES;
    float p[ROWS][OTHERS], ds[ROWS][OTHERS];

    // lse and delta are those of the head.
    template <int HS, bool WINDOW>
    __device__ void compute(const float* q_tile, const float* dout_tile, const float* k_tile, const float* v_tile,
                            const float* lse, const float* delta, int first_query, int first_key, int tokens,
                            float scale, bool causal, int window) {
        multiply_rows<HS>(p, q_tile, k_tile);
        multiply_rows<HS>(ds, dout_tile, v_tile);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const int query = first_query + group() + i * GROUPS;
            const int visible = query >= tokens ? 0 : causal ? query + 1 : tokens, seen = first_seen(query, window);
            const float row_lse = visible ? lse[query] : 0, row_delta = visible ? delta[query] : 0;
#pragma unroll
            for (int j = 0; j < OTHERS; j++) {
                const int key = first_key + lane() + j * LANES;
                bool sees = key < visible && (!WINDOW || key >= seen);
                p[i][j] = sees ? exp_approx(p[i][j] * scale - row_lse) : 0;
                ds[i][j] = p[i][j] * (ds[i][j] - row_delta);
            }
        }
    }

    // One of the two to shared memory.
    __device__ static void put(float* tile, const float (&values)[ROWS][OTHERS]) {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < OTHERS; j++)
                tile[(group() + i * GROUPS) * PAIR_STRIDE + lane() + j * LANES] = values[i][j];
    }
};

// dk = scale ds^T q and dv = p^T dout. A block takes KEYS keys of a key/value head and walks over the tiles of queries
// that see them, of all heads that share it: nobody else adds to these rows.
template <typename T, int HS, int N, bool WINDOW = false>
__global__ void __launch_bounds__(THREADS, BLOCKS<HS>)
    attention_dkdv(T* dk, T* dv, const T* dout, const T* q, const T* k, const T* v, const float* lse,
                   const float* delta, const __grid_constant__ Many<long long, 3> dk_strides,
                   const __grid_constant__ Many<long long, 3> dv_strides,
                   const __grid_constant__ Many<long long, 3> q_strides,
                   const __grid_constant__ Many<long long, 3> k_strides,
                   const __grid_constant__ Many<long long, 3> v_strides, int tokens, int NH, int NKV, float scale,
                   bool causal, int window) {
    extern __shared__ float4 shared[];
    float* k_tile = reinterpret_cast<float*>(shared);
    float* v_tile = k_tile + KEYS * STRIDE<HS>;
    float* q_tile = v_tile + KEYS * STRIDE<HS>;
    float* dout_tile = q_tile + BACKWARD_QUERIES * STRIDE<HS>;
    float* p_tile = dout_tile + BACKWARD_QUERIES * STRIDE<HS>;
    float* ds_tile = p_tile + BACKWARD_QUERIES * PAIR_STRIDE;

    const int b = blockIdx.x / NKV, kv_head = blockIdx.x % NKV, heads = NH / NKV;
    const int first_key = blockIdx.y * KEYS;  // causal: the first keys are seen most, and begin first
    const long long dout_stride = (long long)NH * HS;
    k += b * k_strides[0] + first_key * k_strides[1] + kv_head * k_strides[2];
    v += b * v_strides[0] + first_key * v_strides[1] + kv_head * v_strides[2];
    load_tile<HS, KEYS, N>(k_tile, k, k_strides[1], tokens - first_key);
    load_tile<HS, KEYS, N>(v_tile, v, v_strides[1], tokens - first_key);

    float dk_sums[QUAD][COLUMNS<HS>] = {}, dv_sums[QUAD][COLUMNS<HS>] = {};
    for (int head = kv_head * heads; head < (kv_head + 1) * heads; head++) {
        const T* head_q = q + b * q_strides[0] + head * q_strides[2];
        const T* head_dout = dout + b * tokens * dout_stride + head * HS;
        const long long head_row = (b * (long long)NH + head) * tokens;
        const int from = causal ? first_key / BACKWARD_QUERIES * BACKWARD_QUERIES : 0;
        const int to = WINDOW ? min(tokens, first_key + KEYS - 1 + window) : tokens;  // those further on see none
        for (int first_query = from; first_query < to; first_query += BACKWARD_QUERIES) {
            const int rows = tokens - first_query;
            __syncthreads();  // the tiles of before are done with
            load_tile<HS, BACKWARD_QUERIES, N>(q_tile, head_q + first_query * q_strides[1], q_strides[1], rows);
            load_tile<HS, BACKWARD_QUERIES, N>(dout_tile, head_dout + first_query * dout_stride, dout_stride, rows);
            __syncthreads();
            Pairs pairs;
            pairs.compute<HS, WINDOW>(q_tile, dout_tile, k_tile, v_tile, lse + head_row, delta + head_row, first_query,
                                      first_key, tokens, scale, causal, window);
            Pairs::put(p_tile, pairs.p);
            Pairs::put(ds_tile, pairs.ds);
            __syncthreads();
            add_rows_transposed<HS, BACKWARD_QUERIES>(dv_sums, p_tile, dout_tile);
            add_rows_transposed<HS, BACKWARD_QUERIES>(dk_sums, ds_tile, q_tile);
        }
    }

    dk += b * dk_strides[0] + kv_head * dk_strides[2];
    dv += b * dv_strides[0] + kv_head * dv_strides[2];
#pragma unroll
    for (int i = 0; i < QUAD; i++) {
        const int key = first_key + group() * QUAD + i;
        if (key >= tokens) break;
        store_columns<HS, N>(dk + key * dk_strides[1], dk_sums[i], scale);
        store_columns<HS, N>(dv + key * dv_strides[1], dv_sums[i], 1);
    }
}

// dq = scale ds k. A block takes BACKWARD_QUERIES queries of a head and walks over the tiles of keys that they see.
template <typename T, int HS, int N, bool WINDOW = false>
__global__ void __launch_bounds__(THREADS, BLOCKS<HS>)
    attention_dq(T* dq, const T* dout, const T* q, const T* k, const T* v, const float* lse, const float* delta,
                 const __grid_constant__ Many<long long, 3> dq_strides,
                 const __grid_constant__ Many<long long, 3> q_strides,
                 const __grid_constant__ Many<long long, 3> k_strides,
                 const __grid_constant__ Many<long long, 3> v_strides, int tokens, int NH, int NKV, float scale,
                 bool causal, int window) {
    extern __shared__ float4 shared[];
    float* q_tile = reinterpret_cast<float*>(shared);
    float* dout_tile = q_tile + BACKWARD_QUERIES * STRIDE<HS>;
    float* k_tile = dout_tile + BACKWARD_QUERIES * STRIDE<HS>;
    float* v_tile = k_tile + KEYS * STRIDE<HS>;
    float* ds_tile = v_tile + KEYS * STRIDE<HS>;

    const int b = blockIdx.x / NH, head = blockIdx.x % NH, kv_head = head / (NH / NKV);
    const int first_query = (gridDim.y - 1 - blockIdx.y) * BACKWARD_QUERIES;  // those that see most keys begin first
    const int keys = causal ? min(tokens, first_query + BACKWARD_QUERIES) : tokens;
    const long long dout_stride = (long long)NH * HS, head_row = (b * (long long)NH + head) * tokens;
    q += b * q_strides[0] + first_query * q_strides[1] + head * q_strides[2];
    dout += (b * (long long)tokens + first_query) * dout_stride + head * HS;
    k += b * k_strides[0] + kv_head * k_strides[2];
    v += b * v_strides[0] + kv_head * v_strides[2];
    load_tile<HS, BACKWARD_QUERIES, N>(q_tile, q, q_strides[1], tokens - first_query);
    load_tile<HS, BACKWARD_QUERIES, N>(dout_tile, dout, dout_stride, tokens - first_query);

    float sums[Pairs::ROWS][COLUMNS<HS>] = {};
    const int begin = WINDOW ? first_seen(first_query, window) / KEYS * KEYS : 0;
    for (int first_key = begin; first_key < keys; first_key += KEYS) {
        __syncthreads();  // the tiles of before are done with
        load_tile<HS, KEYS, N>(k_tile, k + first_key * k_strides[1], k_strides[1], tokens - first_key);
        load_tile<HS, KEYS, N>(v_tile, v + first_key * v_strides[1], v_strides[1], tokens - first_key);
        __syncthreads();
        Pairs pairs;
        pairs.compute<HS, WINDOW>(q_tile, dout_tile, k_tile, v_tile, lse + head_row, delta + head_row, first_query,
                                  first_key, tokens, scale, causal, window);
        Pairs::put(ds_tile, pairs.ds);
        __syncwarp();  // a group's rows are its own
        add_rows<HS>(sums, ds_tile, k_tile);
    }

    dq += b * dq_strides[0] + head * dq_strides[2];
#pragma unroll
    for (int i = 0; i < Pairs::ROWS; i++) {
        const int query = first_query + group() + i * GROUPS;
        if (query < tokens) store_columns<HS, N>(dq + query * dq_strides[1], sums[i], scale);
    }
}
