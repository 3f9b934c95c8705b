#include "common/many.cuh"
#include "common/packed.cuh"

// 1 - beta^step, from 1 - beta: 1 - powf(beta, step) would cancel, and 1 - 0.95 has lost digits once 0.95 is rounded.
__device__ inline float bias_correction(float one_minus_beta, float step) {
    return -expm1f(step * log1pf(-one_minus_beta));
}

// What the elements of a tensor have in common.
struct Rates {
    float grad_scale, one_minus_beta1, one_minus_beta2, m_scale, v_scale, eps, lr, weight_decay;
};

// N neighbouring elements; master is null where the parameter itself is fp32.
//     g = grad * grad_scale
//     m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
//     p = p - lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * p)
template <int N, typename T>
__device__ void update(T* param, float* m_at, float* v_at, float* master, const T* grad, const Rates& rates) {
    Packed<float, N> g = load_floats_once<N>(grad), m = load_once<N>(m_at), v = load_once<N>(v_at);
    Packed<float, N> p = master ? load_once<N>(master) : load_floats_once<N>(param);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float scaled = g[k] * rates.grad_scale;
        // not m + (1 - beta1) (g - m), which loses digits of g where beta1 is small
        m[k] = (1 - rates.one_minus_beta1) * m[k] + rates.one_minus_beta1 * scaled;
        v[k] = (1 - rates.one_minus_beta2) * v[k] + rates.one_minus_beta2 * scaled * scaled;
        float direction = m[k] * rates.m_scale / (sqrtf(v[k] * rates.v_scale) + rates.eps);
        p[k] -= rates.lr * (direction + rates.weight_decay * p[k]);
    }
    store_once(m_at, m);
    store_once(v_at, v);
    if (master) store_once(master, p);
    store_floats_once(param, p);
}

// A block updates one chunk: CHUNK elements of one tensor, or its last ones.
template <typename T, int TENSORS, int N, int THREADS, int CHUNK>
__global__ void __launch_bounds__(THREADS)
    adamw(const __grid_constant__ Many<T*, TENSORS> params, const __grid_constant__ Many<float*, TENSORS> ms,
          const __grid_constant__ Many<float*, TENSORS> vs, const __grid_constant__ Many<float*, TENSORS> masters,
          const __grid_constant__ Many<const T*, TENSORS> grads, const __grid_constant__ Many<long long, TENSORS> sizes,
          const __grid_constant__ Many<int, TENSORS> firsts, const __grid_constant__ Many<float, TENSORS> weight_decays,
          const float* step, const float* lr, const float* grad_scale, float one_minus_beta1, float one_minus_beta2,
          float eps) {
    static_assert(CHUNK % (THREADS * N) == 0, "only the end of a tensor is uneven");
    const int t = tensor_of(firsts, blockIdx.x);
    const Rates rates = {*grad_scale,
                         one_minus_beta1,
                         one_minus_beta2,
                         1 / bias_correction(one_minus_beta1, *step),
                         1 / bias_correction(one_minus_beta2, *step),
                         eps,
                         *lr,
                         weight_decays[t]};
    T* param = params[t];
    float *m = ms[t], *v = vs[t], *master = masters[t];
    const T* grad = grads[t];
    const long long begin = (blockIdx.x - firsts[t]) * (long long)CHUNK, end = min(begin + CHUNK, sizes[t]);
    for (long long i = begin + threadIdx.x * N; i < end; i += THREADS * N) {
        if (i + N <= end)
            update<N>(param + i, m + i, v + i, master ? master + i : nullptr, grad + i, rates);
        else
            for (long long j = i; j < end; j++)
                update<1>(param + j, m + j, v + j, master ? master + j : nullptr, grad + j, rates);
    }
}
