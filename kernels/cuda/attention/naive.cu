#include "common/many.cuh"
#include "common/types.cuh"

// Where the elements of (b, t, head) begin in a tensor (B, T, heads, HS), of which only the last axis is contiguous.
__device__ long long at(const Many<long long, 3>& strides, int b, int t, int head) {
    return b * strides[0] + t * strides[1] + head * strides[2];
}

// Keys that query i sees: from `first_key` on, causal none ahead. A window of 0 is none.
__device__ int first_key(int i, int window) { return window ? max(0, i - window + 1) : 0; }
__device__ bool sees(int i, int j, bool causal, int window) { return (!causal || j <= i) && j >= first_key(i, window); }

template <typename T>
__device__ float dot(const T* x, const T* y, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += to_float(x[i]) * to_float(y[i]);
    return sum;
}

// The index i of an element as its place along four axes, of which the last three have the sizes n1, n2 and n3.
struct Place {
    int axis0, axis1, axis2, axis3;
    __device__ Place(long long i, int n1, int n2, int n3) {
        axis3 = i % n3, i /= n3;
        axis2 = i % n2, i /= n2;
        axis1 = i % n1, axis0 = i / n1;
    }
};

// scores[b, head, i, j] = q_i k_j / sqrt(HS) for each key j that query i sees. One thread a score.
template <typename T>
__global__ void attention_scores(float* scores, const T* q, const T* k, const __grid_constant__ Many<long long, 3> q_at,
                                 const __grid_constant__ Many<long long, 3> k_at, int B, int tokens, int NH, int NKV,
                                 int HS, bool causal, int window) {
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= (long long)B * NH * tokens * tokens) return;
    auto [b, head, i, j] = Place(index, NH, tokens, tokens);
    if (!sees(i, j, causal, window)) return;
    int kv_head = head / (NH / NKV);
    scores[index] = dot(q + at(q_at, b, i, head), k + at(k_at, b, j, kv_head), HS) * rsqrtf(HS);
}

// lse = log(sum of exp(scores)), and scores = exp(scores - lse), the probabilities. One thread a query.
__global__ void attention_softmax(float* lse, float* scores, int queries, int tokens, bool causal, int window) {
    int query = blockIdx.x * blockDim.x + threadIdx.x;
    if (query >= queries) return;
    int begin = first_key(query % tokens, window), keys = causal ? query % tokens + 1 : tokens;
    float* row = scores + query * (long long)tokens;
    float largest = row[begin], sum = 0;
    for (int j = begin + 1; j < keys; j++) largest = fmaxf(largest, row[j]);
    for (int j = begin; j < keys; j++) sum += expf(row[j] - largest);
    lse[query] = largest + logf(sum);
    for (int j = begin; j < keys; j++) row[j] = expf(row[j] - largest) / sum;
}

// out_i = sum over j of p_ij v_j. One thread an element of out.
template <typename T>
__global__ void attention_out(T* out, const float* p, const T* v, const __grid_constant__ Many<long long, 3> v_at,
                              int B, int tokens, int NH, int NKV, int HS, bool causal, int window) {
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= (long long)B * tokens * NH * HS) return;
    auto [b, i, head, d] = Place(index, tokens, NH, HS);
    const float* row = p + ((b * NH + head) * (long long)tokens + i) * tokens;
    int kv_head = head / (NH / NKV), keys = causal ? i + 1 : tokens;
    float sum = 0;
    for (int j = first_key(i, window); j < keys; j++) sum += row[j] * to_float(v[at(v_at, b, j, kv_head) + d]);
    out[index] = from_float<T>(sum);
}

// delta_i = dout_i out_i. One thread a query.
template <typename T>
__global__ void attention_delta(float* delta, const T* dout, const T* out, int B, int tokens, int NH, int HS) {
    int query = blockIdx.x * blockDim.x + threadIdx.x;
    if (query >= B * NH * tokens) return;
    int b = query / (NH * tokens), head = query / tokens % NH, i = query % tokens;
    long long row = ((b * (long long)tokens + i) * NH + head) * HS;
    delta[query] = dot(dout + row, out + row, HS);
}

// p_ij = exp(q_i k_j / sqrt(HS) - lse_i), ds_ij = p_ij (dout_i v_j - delta_i) / sqrt(HS). One thread a pair i, j.
template <typename T>
__global__ void attention_dscores(float* p, float* ds, const T* dout, const T* q, const T* k, const T* v,
                                  const float* lse, const float* delta,
                                  const __grid_constant__ Many<long long, 3> q_at,
                                  const __grid_constant__ Many<long long, 3> k_at,
                                  const __grid_constant__ Many<long long, 3> v_at, int B, int tokens, int NH, int NKV,
                                  int HS, bool causal, int window) {
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= (long long)B * NH * tokens * tokens) return;
    auto [b, head, i, j] = Place(index, NH, tokens, tokens);
    if (!sees(i, j, causal, window)) return;
    int kv_head = head / (NH / NKV);
    long long query = (b * (long long)NH + head) * tokens + i;
    const T* dout_row = dout + ((b * (long long)tokens + i) * NH + head) * HS;
    float score = dot(q + at(q_at, b, i, head), k + at(k_at, b, j, kv_head), HS) * rsqrtf(HS);
    float dp = dot(dout_row, v + at(v_at, b, j, kv_head), HS);
    p[index] = expf(score - lse[query]);
    ds[index] = p[index] * (dp - delta[query]) * rsqrtf(HS);
}

// dq_i = sum over j of ds_ij k_j. One thread an element of dq.
template <typename T>
__global__ void attention_dq(T* dq, const float* ds, const T* k, const __grid_constant__ Many<long long, 3> dq_at,
                             const __grid_constant__ Many<long long, 3> k_at, int B, int tokens, int NH, int NKV,
                             int HS, bool causal, int window) {
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= (long long)B * tokens * NH * HS) return;
    auto [b, i, head, d] = Place(index, tokens, NH, HS);
    const float* row = ds + ((b * (long long)NH + head) * tokens + i) * tokens;
    int kv_head = head / (NH / NKV), keys = causal ? i + 1 : tokens;
    float sum = 0;
    for (int j = first_key(i, window); j < keys; j++) sum += row[j] * to_float(k[at(k_at, b, j, kv_head) + d]);
    dq[at(dq_at, b, i, head) + d] = from_float<T>(sum);
}

// dk_j = sum over i of ds_ij q_i, dv_j = sum over i of p_ij dout_i, over all heads that share key and value.
// One thread an element of dk and of dv.
template <typename T>
__global__ void attention_dkdv(T* dk, T* dv, const float* p, const float* ds, const T* dout, const T* q,
                               const __grid_constant__ Many<long long, 3> dk_at,
                               const __grid_constant__ Many<long long, 3> dv_at,
                               const __grid_constant__ Many<long long, 3> q_at, int B, int tokens, int NH, int NKV,
                               int HS, bool causal, int window) {
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= (long long)B * tokens * NKV * HS) return;
    auto [b, j, kv_head, d] = Place(index, tokens, NKV, HS);
    const int queries = window ? min(tokens, j + window) : tokens;  // that are not too far ahead
    float dk_sum = 0, dv_sum = 0;
    for (int head = kv_head * (NH / NKV); head < (kv_head + 1) * (NH / NKV); head++)
        for (int i = causal ? j : 0; i < queries; i++) {
            long long pair = ((b * (long long)NH + head) * tokens + i) * tokens + j;
            dk_sum += ds[pair] * to_float(q[at(q_at, b, i, head) + d]);
            dv_sum += p[pair] * to_float(dout[((b * (long long)tokens + i) * NH + head) * HS + d]);
        }
    dk[at(dk_at, b, j, kv_head) + d] = from_float<T>(dk_sum);
    dv[at(dv_at, b, j, kv_head) + d] = from_float<T>(dv_sum);
}
