#include "common.hpp"

// g = grad * grad_scale; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2
// p = p - lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * p)
EXPORT void adamw_forward(T** params, float** m, float** v, float** masters, const T** grads, const int64_t* sizes,
                          int64_t tensors, const float* step, const float* lr, const float* grad_scale,
                          const float* weight_decays, float one_minus_beta1, float one_minus_beta2, float eps) {
    double beta1 = 1.0 - one_minus_beta1, beta2 = 1.0 - one_minus_beta2;
    double m_correction = 1 - std::pow(beta1, *step), v_correction = 1 - std::pow(beta2, *step);
    for (int64_t t = 0; t < tensors; t++)
        for (int64_t i = 0; i < sizes[t]; i++) {
            double g = load(grads[t] + i) * *grad_scale;
            double mi = beta1 * m[t][i] + one_minus_beta1 * g;
            double vi = beta2 * v[t][i] + one_minus_beta2 * g * g;
            double p = masters ? masters[t][i] : load(params[t] + i);
            p -= *lr * (mi / m_correction / (std::sqrt(vi / v_correction) + eps) + weight_decays[t] * p);
            m[t][i] = float(mi);
            v[t][i] = float(vi);
            if (masters) masters[t][i] = float(p);
            store(params[t] + i, float(p));
        }
}
