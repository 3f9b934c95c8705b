#include "common.hpp"

// out = silu(gate) up, silu(g) = g / (1 + exp(-g)); a row of x is its gates, then its ups
EXPORT void swiglu_forward(T* out, const T* x, int64_t M, int64_t H) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t h = 0; h < H; h++) {
            float gate = load(x + m * 2 * H + h), up = load(x + m * 2 * H + H + h);
            store(out + m * H + h, gate / (1 + std::exp(-gate)) * up);
        }
}

// silu' = s (1 + g (1 - s)), s = 1 / (1 + exp(-g)) and 1 - s = 1 / (1 + exp(g))
EXPORT void swiglu_backward(T* dx, const T* dout, const T* x, int64_t M, int64_t H) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t h = 0; h < H; h++) {
            float gate = load(x + m * 2 * H + h), up = load(x + m * 2 * H + H + h), gradient = load(dout + m * H + h);
            float s = 1 / (1 + std::exp(-gate)), rest = 1 / (1 + std::exp(gate));
            store(dx + m * 2 * H + h, s * (1 + gate * rest) * up * gradient);
            store(dx + m * 2 * H + H + h, gate * s * gradient);
        }
}
