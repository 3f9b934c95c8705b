#include "common.hpp"

constexpr int64_t BLOCK = 4096;  // elements a thread takes at a time
constexpr int64_t AHEAD = 256;   // elements; seven streams are more than the hardware follows by itself

// What is the same for every element; the corrections of the formula are turned into two factors.
struct Step {
    float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, lr, grad_scale;
    float m_factor;       // 1 / (1 - beta1^step)
    float root_v_factor;  // 1 / sqrt(1 - beta2^step)
};

// g = grad * grad_scale; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2
// p = p - lr * (m * m_factor / (sqrt(v) * root_v_factor + eps) + weight_decay * p)
template <class Master>
INLINE void update(T* param, float* m, float* v, Master* master, const T* grad, int64_t length, const Step& s,
                   float weight_decay) {
    for_vectors(length, [&](int64_t i, int64_t n, int64_t) {
        prefetch(grad + i + AHEAD);
        prefetch(m + i + AHEAD);
        prefetch(v + i + AHEAD);
        prefetch(master + i + AHEAD);
        vec g = load_part(grad + i, n) * s.grad_scale;
        vec mi = s.beta1 * load_part(m + i, n) + s.one_minus_beta1 * g;
        vec vi = s.beta2 * load_part(v + i, n) + s.one_minus_beta2 * g * g;
        vec p = load_part(master + i, n);
        p -= s.lr * (mi * s.m_factor / (sqrt16(vi) * s.root_v_factor + s.eps) + weight_decay * p);
        store_part(m + i, mi, n);
        store_part(v + i, vi, n);
        store_part(master + i, p, n);
        if ((void*)master != (void*)param) store_part(param + i, p, n);
    });
}

// One parallel region for all tensors: nobody waits between two of them.
EXPORT void adamw_forward(T** params, float** m, float** v, float** masters, const T** grads, const int64_t* sizes,
                          int64_t tensors, const float* step, const float* lr, const float* grad_scale,
                          const float* weight_decays, float one_minus_beta1, float one_minus_beta2, float eps) {
    double beta1 = 1.0 - one_minus_beta1, beta2 = 1.0 - one_minus_beta2;
    Step s = {float(beta1), one_minus_beta1, float(beta2), one_minus_beta2, eps, *lr, *grad_scale,
              float(1 / (1 - std::pow(beta1, *step))), float(1 / std::sqrt(1 - std::pow(beta2, *step)))};
#pragma omp parallel
    for (int64_t t = 0; t < tensors; t++) {
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < sizes[t]; i += BLOCK) {
            int64_t length = sizes[t] - i < BLOCK ? sizes[t] - i : BLOCK;
            if (masters)
                update(params[t] + i, m[t] + i, v[t] + i, masters[t] + i, grads[t] + i, length, s, weight_decays[t]);
            else
                update(params[t] + i, m[t] + i, v[t] + i, params[t] + i, grads[t] + i, length, s, weight_decays[t]);
        }
    }
}
