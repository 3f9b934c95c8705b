#include "common.hpp"

static const float SCALE = std::sqrt(2 / M_PI), CUBIC = 0.044715f;

EXPORT void gelu_forward(T* out, const T* x_values, int64_t N) {
    for (int64_t i = 0; i < N; i++) {
        float x = load(x_values + i);
        float t = std::tanh(SCALE * (x + CUBIC * x * x * x));
        store(out + i, 0.5f * x * (1 + t));
    }
}

EXPORT void gelu_backward(T* dx, const T* dout, const T* x_values, int64_t N) {
    for (int64_t i = 0; i < N; i++) {
        float x = load(x_values + i);
        float t = std::tanh(SCALE * (x + CUBIC * x * x * x));
        float slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * SCALE * (1 + 3 * CUBIC * x * x);
        store(dx + i, load(dout + i) * slope);
    }
}
