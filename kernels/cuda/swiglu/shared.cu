#include "common/math.cuh"
#include "common/packed.cuh"

// s = sigmoid(g) and 1 - s, by e = exp(-|g|): one is 1 / (1 + e), the other e / (1 + e), and neither loses its digits
// where it is small.
struct Sigmoid {
    float s, rest;
};

__device__ Sigmoid sigmoid(float g) {
    float e = exp_approx(-fabsf(g)), large = reciprocal_approx(1 + e), small = e * large;
    return g > 0 ? Sigmoid{large, small} : Sigmoid{small, large};
}

// out = silu(gate) up. Row blockIdx.x of x is H gates, then their ups; a thread has N columns.
template <typename T, int N>
__global__ void swiglu_forward(T* out, const T* x, int H) {
    long long row = blockIdx.x;
    int column = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (column >= H) return;
    const T* gates = x + row * 2 * H + column;
    Packed<float, N> gate = load_floats_once<N>(gates), up = load_floats_once<N>(gates + H);
#pragma unroll
    for (int k = 0; k < N; k++) gate[k] = gate[k] * sigmoid(gate[k]).s * up[k];
    store_floats(out + row * H + column, gate);
}

// dgate = dout up silu'(gate), silu' = s (1 + g (1 - s)); dup = dout silu(gate)
template <typename T, int N>
__global__ void swiglu_backward(T* dx, const T* dout, const T* x, int H) {
    long long row = blockIdx.x;
    int column = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (column >= H) return;
    long long at = row * 2 * H + column;
    Packed<float, N> gate = load_floats_once<N>(x + at), up = load_floats_once<N>(x + at + H);
    Packed<float, N> gradient = load_floats_once<N>(dout + row * H + column), dgate;
#pragma unroll
    for (int k = 0; k < N; k++) {
        Sigmoid of = sigmoid(gate[k]);
        dgate[k] = of.s * (1 + gate[k] * of.rest) * up[k] * gradient[k];
        gradient[k] *= gate[k] * of.s;
    }
    store_floats(dx + at, dgate);
    store_floats(dx + at + H, gradient);
}
