#include "common/types.cuh"

// term(0) + … + term(count - 1), in chains of sqrt(count) terms, then the chains' sums: rounding errors grow with the
// length of a chain, and one of all 65,536 rows of a weight gradient would lose digits that a library keeps.
template <typename Term>
__device__ float sum(int count, Term term) {
    int chain = int(ceilf(sqrtf(count)));
    float total = 0;
    for (int start = 0; start < count; start += chain) {
        float part = 0;
        for (int i = start; i < min(start + chain, count); i++) part += term(i);
        total += part;
    }
    return total;
}

constexpr float SCALE = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float CUBIC = 0.044715f;

__device__ float gelu(float x) { return 0.5f * x * (1 + tanhf(SCALE * (x + CUBIC * x * x * x))); }

__device__ float gelu_derivative(float x) {
    float t = tanhf(SCALE * (x + CUBIC * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * SCALE * (1 + 3 * CUBIC * x * x);
}

// out = x weight^T (+ bias). Where pre_gelu is wanted, it is that, and out is its GELU. One thread an element of out.
template <typename T>
__global__ void matmul_forward(T* out, T* pre_gelu, const T* x, const T* weight, const T* bias, int M, int N, int K) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= (long long)M * N) return;
    const T* x_row = x + i / N * K;
    const T* weight_row = weight + i % N * K;
    float value = sum(K, [&](int k) { return to_float(x_row[k]) * to_float(weight_row[k]); });
    if (bias) value += to_float(bias[i % N]);
    if (pre_gelu) pre_gelu[i] = from_float<T>(value);
    out[i] = from_float<T>(pre_gelu ? gelu(value) : value);
}

// dx = dout weight, times gelu'(x_pre_gelu) where x was the GELU of that. One thread an element of dx.
template <typename T>
__global__ void matmul_dx(T* dx, const T* dout, const T* weight, const T* x_pre_gelu, int M, int N, int K) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= (long long)M * K) return;
    const T* dout_row = dout + i / K * N;
    const T* weight_column = weight + i % K;
    float value = sum(N, [&](int n) { return to_float(dout_row[n]) * to_float(weight_column[(long long)n * K]); });
    if (x_pre_gelu) value *= gelu_derivative(to_float(x_pre_gelu[i]));
    dx[i] = from_float<T>(value);
}

// dweight = dout^T x, or that added to it. One thread an element of dweight.
template <typename T>
__global__ void matmul_dweight(T* dweight, const T* dout, const T* x, int M, int N, int K, bool accumulate) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= (long long)N * K) return;
    const T* dout_column = dout + i / K;
    const T* x_column = x + i % K;
    float value = sum(M, [&](int m) {
        return to_float(dout_column[(long long)m * N]) * to_float(x_column[(long long)m * K]);
    });
    if (accumulate) value += to_float(dweight[i]);
    dweight[i] = from_float<T>(value);
}

// dbias = the sum of dout's rows, or that added to it. One thread a column.
template <typename T>
__global__ void matmul_dbias(T* dbias, const T* dout, int M, int N, bool accumulate) {
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= N) return;
    float value = sum(M, [&](int m) { return to_float(dout[(long long)m * N + n]); });
    if (accumulate) value += to_float(dbias[n]);
    dbias[n] = from_float<T>(value);
}
