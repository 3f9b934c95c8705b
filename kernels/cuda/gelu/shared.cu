#include "common/gelu.cuh"
#include "common/packed.cuh"

// out = gelu(x). A thread has PACKS packs, a block's width apart, and asks for all of them before it uses one.
template <typename T, int N, int PACKS, int THREADS>
__global__ void gelu_forward(T* out, const T* x, long long n) {
    constexpr int STEP = THREADS * N;
    long long first = blockIdx.x * (long long)(PACKS * STEP) + threadIdx.x * N;
    if (first + (PACKS - 1) * STEP + N <= n) {
        Packed<float, N> values[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; p++) values[p] = load_floats_once<N>(x + first + p * STEP);
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
#pragma unroll
            for (int k = 0; k < N; k++) values[p][k] = gelu(values[p][k]);
            store_floats(out + first + p * STEP, values[p]);
        }
    } else {  // the last block
        for (int p = 0; p < PACKS; p++)
            for (long long i = first + p * STEP; i < min(n, first + p * STEP + N); i++)
                out[i] = from_float<T>(gelu(to_float(x[i])));
    }
}

// dx = dout gelu'(x)
template <typename T, int N>
__global__ void gelu_backward(T* dx, const T* dout, const T* x, long long n) {
    long long i = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * N;
    if (i + N <= n) {
        Packed<float, N> gradient = load_floats_once<N>(dout + i), value = load_floats_once<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; k++) gradient[k] *= gelu_grad(value[k]);
        store_floats(dx + i, gradient);
    } else {
        for (; i < n; i++) dx[i] = from_float<T>(to_float(dout[i]) * gelu_grad(to_float(x[i])));
    }
}
