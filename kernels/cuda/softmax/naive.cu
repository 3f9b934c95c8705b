#include "common/types.cuh"

// Row r of S columns sees the first `visible` of them.
__device__ int visible_columns(long long r, int S, bool causal) { return causal ? int(r % S) + 1 : S; }

// out = exp(x - max) / sum of exp(x - max), 0 where masked; one thread a row. Its sum is long: in double.
template <typename T>
__global__ void softmax_forward(T* out, const T* x, long long R, int S, bool causal) {
    long long r = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (r >= R) return;
    const T* row = x + r * S;
    int visible = visible_columns(r, S, causal);
    float largest = to_float(row[0]);
    for (int c = 1; c < visible; c++) largest = fmaxf(largest, to_float(row[c]));
    double sum = 0;
    for (int c = 0; c < visible; c++) sum += expf(to_float(row[c]) - largest);
    float total = float(sum);
    for (int c = 0; c < S; c++)
        out[r * S + c] = from_float<T>(c < visible ? expf(to_float(row[c]) - largest) / total : 0.0f);
}

// dx = out * (dout - sum(dout * out)), 0 where masked; one thread a row
template <typename T>
__global__ void softmax_backward(T* dx, const T* dout, const T* out, long long R, int S, bool causal) {
    long long r = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (r >= R) return;
    int visible = visible_columns(r, S, causal);
    double sum = 0;
    for (int c = 0; c < visible; c++) sum += to_float(dout[r * S + c]) * to_float(out[r * S + c]);
    float dot = float(sum);
    for (int c = 0; c < S; c++) {
        float gradient = to_float(out[r * S + c]) * (to_float(dout[r * S + c]) - dot);
        dx[r * S + c] = from_float<T>(c < visible ? gradient : 0.0f);
    }
}
