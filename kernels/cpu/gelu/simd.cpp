#include "elementwise.hpp"
#include "gelu.hpp"

EXPORT void gelu_forward(T* out, const T* x, int64_t N) {
    elementwise(out, N, [=](int64_t i, int64_t n) { return gelu16(load_part(x + i, n)); });
}

EXPORT void gelu_backward(T* dx, const T* dout, const T* x, int64_t N) {
    elementwise(dx, N, [=](int64_t i, int64_t n) {
        return load_part(dout + i, n) * gelu_grad16(load_part(x + i, n));
    });
}
