#include "common/math.cuh"
#include "common/packed.cuh"
#include "common/reduce.cuh"

constexpr int THREADS = 128;

constexpr int power_of_2(int least) {
    int power = 1;
    while (power < least) power *= 2;
    return power;
}

// A row of HS elements in a group of lanes: PACKS packs of N each, the lanes' packs side by side. A warp, or several
// groups of it, has a key at a time each.
template <int HS, int N>
struct Lanes {
    static constexpr int NEEDED = HS / N, LANES = NEEDED < WARP ? power_of_2(NEEDED) : WARP;
    static constexpr int PACKS = (NEEDED + LANES - 1) / LANES, COLUMNS = PACKS * N, GROUPS = THREADS / LANES;
    __device__ static int group() { return threadIdx.x / LANES; }
    __device__ static int column(int pack) { return (pack * LANES + threadIdx.x % LANES) * N; }

    template <typename T>
    __device__ static void load(Packed<T, N> (&to)[PACKS], const T* row) {
#pragma unroll
        for (int p = 0; p < PACKS; p++)
            if (column(p) < HS) to[p] = load_once<N>(row + column(p));
    }
};

// Where one query's numbers of one split are in the workspace: HS sums of values, then the largest score, then the sum
// of exp(score - largest). `query` counts (sequence, key/value head, query head of it, token).
template <int HS>
__device__ float* part_of(float* parts, long long query, int split, int splits) {
    return parts + (query * splits + split) * (HS + 2);
}

// One split of the keys of one key/value head meets ROWS of the queries that see it. Where the keys have one split only,
// out is written; else `parts`, which decode_attention_join puts together.
template <typename T, int HS, int N, int ROWS>
__global__ void __launch_bounds__(THREADS)
    decode_attention_keys(T* out, float* parts, T* k_cache, T* v_cache, const T* qkv, const long long* lengths,
                          int tokens, int NH, int NKV, int S, int keys, float scale) {
    using At = Lanes<HS, N>;
    constexpr int PACKS = At::PACKS, GROUPS = At::GROUPS, COLUMNS = At::COLUMNS, UNROLL = ROWS > 2 ? 2 : 4;
    const int b = blockIdx.y / NKV, kv = blockIdx.y % NKV, length = int(lengths[b]);
    const int begin = blockIdx.x * keys, end = min(begin + keys, length + tokens);
    if (begin >= end) return;
    const int heads = NH / NKV, queries = heads * tokens;
    const T* fresh = qkv + (b * (long long)tokens * (NH + 2 * NKV) + NH + kv) * HS;  // the first new key
    const long long token = (NH + 2 * NKV) * (long long)HS;                          // from one to the next
    k_cache += (b * (long long)NKV + kv) * S * HS;
    v_cache += (b * (long long)NKV + kv) * S * HS;

    // The new tokens that belong here are appended. Nobody reads them from there yet, other blocks neither.
    const int from = max(begin, length);
    for (int i = threadIdx.x; blockIdx.z == 0 && i < (end - from) * (HS / N); i += THREADS) {
        const int j = from + i / (HS / N), d = i % (HS / N) * N;
        store(k_cache + j * (long long)HS + d, load<N>(fresh + (j - length) * token + d));
        store(v_cache + j * (long long)HS + d, load<N>(fresh + (j - length) * token + NKV * HS + d));
    }

    float q[ROWS][COLUMNS], sums[ROWS][COLUMNS] = {}, largest[ROWS], total[ROWS];
    int visible[ROWS];  // the first key that is not
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int query = blockIdx.z * ROWS + i, known = min(query, queries - 1);
        const T* row = qkv + known % tokens * token + (b * (long long)tokens * (NH + 2 * NKV)) * HS +
                       (kv * heads + known / tokens) * HS;
        visible[i] = query < queries ? min(end, length + query % tokens + 1) : 0;  // here: others have what is behind
        largest[i] = LOWEST, total[i] = 0;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            Packed<float, N> some = At::column(p) < HS ? load_floats<N>(row + At::column(p)) : filled<N>(0);
#pragma unroll
            for (int k = 0; k < N; k++) q[i][p * N + k] = some[k];
        }
    }

    for (int first = begin; first < end; first += GROUPS * UNROLL) {
        Packed<T, N> k_rows[UNROLL][PACKS], v_rows[UNROLL][PACKS];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int j = min(first + u * GROUPS + At::group(), end - 1);  // what lies behind was never written
            const bool old = j < length;
            At::load(k_rows[u], old ? k_cache + j * (long long)HS : fresh + (j - length) * token);
            At::load(v_rows[u], old ? v_cache + j * (long long)HS : fresh + (j - length) * token + NKV * HS);
        }
        float scores[UNROLL][ROWS];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
#pragma unroll
            for (int i = 0; i < ROWS; i++) scores[u][i] = 0;
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                if (At::column(p) >= HS) continue;
                Packed<float, N> some = to_floats(k_rows[u][p]);
#pragma unroll
                for (int i = 0; i < ROWS; i++)
#pragma unroll
                    for (int k = 0; k < N; k++) scores[u][i] += q[i][p * N + k] * some[k];
            }
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int distance = At::LANES / 2; distance > 0; distance /= 2)
                    scores[u][i] += __shfl_xor_sync(ALL_LANES, scores[u][i], distance);
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const float before = largest[i];
#pragma unroll
            for (int u = 0; u < UNROLL; u++)
                if (first + u * GROUPS + At::group() < visible[i]) largest[i] = fmaxf(largest[i], scores[u][i]);
            const float correction = exp_approx((before - largest[i]) * scale);
            total[i] *= correction;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) sums[i][c] *= correction;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const bool sees = first + u * GROUPS + At::group() < visible[i];
                scores[u][i] = sees ? exp_approx((scores[u][i] - largest[i]) * scale) : 0;
                total[i] += scores[u][i];
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                if (At::column(p) >= HS) continue;
                Packed<float, N> some = to_floats(v_rows[u][p]);
#pragma unroll
                for (int i = 0; i < ROWS; i++)
#pragma unroll
                    for (int k = 0; k < N; k++) sums[i][p * N + k] += scores[u][i] * some[k];
            }
    }

    // The groups of this block together: each group's share of a query's softmax is relative to the largest of all.
    __shared__ float group_sums[GROUPS][ROWS][HS], tops[GROUPS][ROWS], totals[GROUPS][ROWS];
    __shared__ float top[ROWS], denominator[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int p = 0; p < PACKS; p++)
            if (At::column(p) < HS)
#pragma unroll
                for (int k = 0; k < N; k++) group_sums[At::group()][i][At::column(p) + k] = sums[i][p * N + k];
        if (threadIdx.x % At::LANES == 0) tops[At::group()][i] = largest[i], totals[At::group()][i] = total[i];
    }
    __syncthreads();
    if (threadIdx.x < ROWS) {
        const int i = threadIdx.x;
        float most = LOWEST, sum = 0;
        for (int g = 0; g < GROUPS; g++) most = fmaxf(most, tops[g][i]);
        for (int g = 0; g < GROUPS; g++) {
            tops[g][i] = exp_approx((tops[g][i] - most) * scale);  // now the group's share
            sum += totals[g][i] * tops[g][i];
        }
        top[i] = most * scale, denominator[i] = sum;
    }
    __syncthreads();
    for (int index = threadIdx.x; index < ROWS * HS; index += THREADS) {
        const int i = index / HS, d = index % HS, query = blockIdx.z * ROWS + i;
        if (query >= queries) break;
        float sum = 0;
        for (int g = 0; g < GROUPS; g++) sum += group_sums[g][i][d] * tops[g][i];
        if (gridDim.x == 1) {
            const long long row = (b * (long long)tokens + query % tokens) * NH + kv * heads + query / tokens;
            out[row * HS + d] = from_float<T>(sum / denominator[i]);
            continue;
        }
        float* part = part_of<HS>(parts, blockIdx.y * (long long)queries + query, blockIdx.x, gridDim.x);
        part[d] = sum;
        if (d == 0) part[HS] = top[i], part[HS + 1] = denominator[i];
    }
}

// The splits of one query together. A block a row of out.
template <typename T, int HS>
__global__ void __launch_bounds__(THREADS)
    decode_attention_join(T* out, float* parts, const long long* lengths, int tokens, int NH, int NKV, int splits,
                          int keys) {
    const int head = blockIdx.x % NH, t = blockIdx.x / NH % tokens, b = blockIdx.x / NH / tokens, heads = NH / NKV;
    const long long query = ((b * (long long)NKV + head / heads) * heads + head % heads) * tokens + t;
    const int used = (int(lengths[b]) + t) / keys + 1;  // that hold a key which this query sees
    float top = LOWEST, total = 0;
    for (int s = 0; s < used; s++) top = fmaxf(top, part_of<HS>(parts, query, s, splits)[HS]);
    for (int s = 0; s < used; s++) {
        const float* part = part_of<HS>(parts, query, s, splits);
        total += part[HS + 1] * exp_approx(part[HS] - top);
    }
    for (int d = threadIdx.x; d < HS; d += THREADS) {
        float sum = 0;
        for (int s = 0; s < used; s++) {
            const float* part = part_of<HS>(parts, query, s, splits);
            sum += part[d] * exp_approx(part[HS] - top);
        }
        out[blockIdx.x * (long long)HS + d] = from_float<T>(sum / total);
    }
}
