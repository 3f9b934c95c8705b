#include "common/types.cuh"

// 1 - beta^step, from 1 - beta: 1 - powf(beta, step) would cancel, and 1 - 0.95 has lost digits once 0.95 is rounded.
__device__ float bias_correction(float one_minus_beta, float step) {
    return -expm1f(step * log1pf(-one_minus_beta));
}

// One tensor; one thread an element. master is null where the parameter itself is fp32.
//     g = grad * grad_scale
//     m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
//     p = p - lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * p)
template <typename T>
__global__ void adamw(T* param, float* m, float* v, float* master, const T* grad, const float* step, const float* lr,
                      const float* grad_scale, float one_minus_beta1, float one_minus_beta2, float eps,
                      float weight_decay, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    float g = to_float(grad[i]) * *grad_scale;
    // not m + (1 - beta1) (g - m), which loses digits of g where beta1 is small
    m[i] = (1 - one_minus_beta1) * m[i] + one_minus_beta1 * g;
    v[i] = (1 - one_minus_beta2) * v[i] + one_minus_beta2 * g * g;
    float m_hat = m[i] / bias_correction(one_minus_beta1, *step);
    float v_hat = v[i] / bias_correction(one_minus_beta2, *step);
    float p = master ? master[i] : to_float(param[i]);
    p -= *lr * (m_hat / (sqrtf(v_hat) + eps) + weight_decay * p);
    if (master) master[i] = p;
    param[i] = from_float<T>(p);
}
