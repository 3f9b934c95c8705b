// Attention's gradients where there is one key and one query, which cuDNN refuses: the formulas as they stand, so that what
// is not finite stays so. A warp has one key's head and adds up, in order, what its queries' heads give.
#include "common/math.cuh"
#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr int MOST_HS = 256;

// q, k, v and their gradients are slices of packed tensors, whose sequences lie so many elements apart; dout and out are
// packed for themselves.
template <typename T>
__global__ void single_key_backward(T* dq, T* dk, T* dv, const T* dout, const T* q, const T* k, const T* v, const T* out,
                                    const float* lse, long long grads_apart, long long inputs_apart, int B, int NH, int NKV,
                                    int HS, float scale) {
    constexpr int EACH = MOST_HS / WARP;
    const int task = blockIdx.x * (blockDim.x / WARP) + warp_id();
    if (task >= B * NKV) return;
    const int b = task / NKV, key_head = task % NKV, group = NH / NKV;
    k += b * inputs_apart + key_head * (long long)HS;
    v += b * inputs_apart + key_head * (long long)HS;
    float key_sums[EACH] = {}, value_sums[EACH] = {};
    for (int head = key_head * group; head < (key_head + 1) * group; head++) {
        const T* query = q + b * inputs_apart + head * (long long)HS;
        const long long own = (b * (long long)NH + head) * HS;
        float score = 0, dp = 0, delta = 0;
        for (int i = lane_id(); i < HS; i += WARP) {
            const float gradient = to_float(dout[own + i]);
            score += to_float(query[i]) * to_float(k[i]);
            dp += gradient * to_float(v[i]);
            delta += gradient * to_float(out[own + i]);
        }
        const float p = exp_approx(warp_sum(score) * scale - lse[b * (long long)NH + head]);
        const float ds = p * (warp_sum(dp) - warp_sum(delta)) * scale;
        T* query_gradient = dq + b * grads_apart + head * (long long)HS;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const int i = e * WARP + lane_id();
            if (i < HS) {
                query_gradient[i] = from_float<T>(ds * to_float(k[i]));
                key_sums[e] += ds * to_float(query[i]);
                value_sums[e] += p * to_float(dout[own + i]);
            }
        }
    }
    dk += b * grads_apart + key_head * (long long)HS;
    dv += b * grads_apart + key_head * (long long)HS;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int i = e * WARP + lane_id();
        if (i < HS) {
            dk[i] = from_float<T>(key_sums[e]);
            dv[i] = from_float<T>(value_sums[e]);
        }
    }
}
