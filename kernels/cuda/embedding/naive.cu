#include "common/types.cuh"

// out[b, t] = wte[tokens[b, t]] + wpe[t], where there is a wpe; one thread an element
template <typename T>
__global__ void embedding_forward(T* out, const long long* tokens, const T* wte, const T* wpe, long long n, int length,
                                  int C) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long row = i / C, t = row % length, c = i % C;
    float value = to_float(wte[tokens[row] * C + c]);
    out[i] = from_float<T>(wpe ? value + to_float(wpe[t * C + c]) : value);
}

// sums = 0 (or dwte); one thread an element of the table
template <typename T>
__global__ void embedding_backward_begin(float* sums, const T* dwte, long long n, bool accumulate) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) sums[i] = accumulate ? to_float(dwte[i]) : 0.0f;
}

// sums[tokens[b, t]] += dout[b, t]; one thread an element of dout. Equal tokens meet in one row: hence atomics, which
// add in whatever order the threads come.
template <typename T>
__global__ void embedding_backward_add(float* sums, const T* dout, const long long* tokens, long long n, int C) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&sums[tokens[i / C] * C + i % C], to_float(dout[i]));
}

// dwte = sums, rounded; one thread an element of the table
template <typename T>
__global__ void embedding_backward_end(T* dwte, const float* sums, long long n) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < n) dwte[i] = from_float<T>(sums[i]);
}

// dwpe[t] = (or +=) sum over b of dout[b, t]; one thread an element of dwpe
template <typename T>
__global__ void embedding_backward_positions(T* dwpe, const T* dout, int B, long long n, bool accumulate) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = accumulate ? to_float(dwpe[i]) : 0.0f;
    for (int b = 0; b < B; b++) sum += to_float(dout[b * n + i]);
    dwpe[i] = from_float<T>(sum);
}
