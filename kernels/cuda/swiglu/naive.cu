#include "common/types.cuh"

// out = silu(gate) up, silu(g) = g / (1 + exp(-g)); a row of x is its H gates, then its ups
template <typename T>
__global__ void swiglu_forward(T* out, const T* x, long long n, int H) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    const T* gates = x + i / H * 2 * H + i % H;
    float gate = to_float(gates[0]), up = to_float(gates[H]);
    out[i] = from_float<T>(gate / (1 + expf(-gate)) * up);
}

// dgate = dout up s (1 + g (1 - s)), s = 1 / (1 + exp(-g)) and 1 - s = 1 / (1 + exp(g)); dup = dout silu(gate)
template <typename T>
__global__ void swiglu_backward(T* dx, const T* dout, const T* x, long long n, int H) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long at = i / H * 2 * H + i % H;
    float gate = to_float(x[at]), up = to_float(x[at + H]), gradient = to_float(dout[i]);
    float s = 1 / (1 + expf(-gate)), rest = 1 / (1 + expf(gate));
    dx[at] = from_float<T>(s * (1 + gate * rest) * up * gradient);
    dx[at + H] = from_float<T>(gate * s * gradient);
}
