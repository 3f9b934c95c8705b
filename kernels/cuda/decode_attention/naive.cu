#include "common/types.cuh"

// The index i of an element as its place along four axes, of which the last three have the sizes n1, n2 and n3.
struct Place {
    int axis0, axis1, axis2, axis3;
    __device__ Place(long long i, int n1, int n2, int n3) {
        axis3 = i % n3, i /= n3;
        axis2 = i % n2, i /= n2;
        axis1 = i % n1, axis0 = i / n1;
    }
};

// The new keys and values to their positions in the caches (B, NKV, S, HS). One thread an element of each.
template <typename T>
__global__ void decode_attention_append(T* k_cache, T* v_cache, const T* qkv, const long long* lengths, int B,
                                        int tokens, int NH, int NKV, int S, int HS) {
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= (long long)B * tokens * NKV * HS) return;
    auto [b, t, kv, d] = Place(index, tokens, NKV, HS);
    long long to = ((b * (long long)NKV + kv) * S + lengths[b] + t) * HS + d;
    const T* heads = qkv + (b * (long long)tokens + t) * (NH + 2 * NKV) * HS;
    k_cache[to] = heads[(NH + kv) * HS + d];
    v_cache[to] = heads[(NH + NKV + kv) * HS + d];
}

// scores[b, head, t, j] = q_t k_j / sqrt(HS) for each key j that query t sees. One thread a score.
template <typename T>
__global__ void decode_attention_scores(float* scores, const T* qkv, const T* k_cache, const long long* lengths, int B,
                                        int tokens, int NH, int NKV, int S, int HS) {
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= (long long)B * NH * tokens * S) return;
    auto [b, head, t, j] = Place(index, NH, tokens, S);
    if (j > lengths[b] + t) return;
    const T* q = qkv + ((b * (long long)tokens + t) * (NH + 2 * NKV) + head) * HS;
    const T* k = k_cache + ((b * (long long)NKV + head / (NH / NKV)) * S + j) * HS;
    float sum = 0;
    for (int d = 0; d < HS; d++) sum += to_float(q[d]) * to_float(k[d]);
    scores[index] = sum * rsqrtf(HS);
}

// scores = exp(scores - largest) / sum of those: the probabilities. One thread a query.
__global__ void decode_attention_softmax(float* scores, const long long* lengths, int B, int tokens, int NH, int NKV,
                                         int S, int HS) {
    int query = blockIdx.x * blockDim.x + threadIdx.x;  // (b, head, t)
    if (query >= B * NH * tokens) return;
    int keys = int(lengths[query / (NH * tokens)]) + query % tokens + 1;
    float* row = scores + query * (long long)S;
    float largest = row[0], sum = 0;
    for (int j = 1; j < keys; j++) largest = fmaxf(largest, row[j]);
    for (int j = 0; j < keys; j++) sum += expf(row[j] - largest);
    for (int j = 0; j < keys; j++) row[j] = expf(row[j] - largest) / sum;
}

// out_t = sum over j of p_tj v_j. One thread an element of out.
template <typename T>
__global__ void decode_attention_out(T* out, const float* p, const T* v_cache, const long long* lengths, int B,
                                     int tokens, int NH, int NKV, int S, int HS) {
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= (long long)B * tokens * NH * HS) return;
    auto [b, t, head, d] = Place(index, tokens, NH, HS);
    const float* row = p + ((b * (long long)NH + head) * tokens + t) * S;
    const T* v = v_cache + (b * (long long)NKV + head / (NH / NKV)) * S * HS + d;
    int keys = int(lengths[b]) + t + 1;
    float sum = 0;
    for (int j = 0; j < keys; j++) sum += row[j] * to_float(v[j * (long long)HS]);
    out[index] = from_float<T>(sum);
}
