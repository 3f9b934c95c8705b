#include "common/types.cuh"

constexpr float SCALE = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float CUBIC = 0.044715f;

// out = x/2 (1 + tanh(SCALE (x + CUBIC x^3)))
template <typename T>
__global__ void gelu_forward(T* out, const T* x, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = to_float(x[i]);
    float t = tanhf(SCALE * (v + CUBIC * v * v * v));
    out[i] = from_float<T>(0.5f * v * (1 + t));
}

// dx = dout ((1 + t)/2 + x/2 (1 - t^2) SCALE (1 + 3 CUBIC x^2)), t as above
template <typename T>
__global__ void gelu_backward(T* dx, const T* dout, const T* x, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = to_float(x[i]);
    float t = tanhf(SCALE * (v + CUBIC * v * v * v));
    float slope = SCALE * (1 + 3 * CUBIC * v * v);
    dx[i] = from_float<T>(to_float(dout[i]) * (0.5f * (1 + t) + 0.5f * v * (1 - t * t) * slope));
}
