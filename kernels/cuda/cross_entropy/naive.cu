#include "common/types.cuh"

// lse = log(sum over the first V columns of exp(logits)); losses = lse - logits[target]. One thread a row.
template <typename T>
__global__ void cross_entropy_forward(float* losses, float* lse, const T* logits, const long long* targets, int rows,
                                      int V, int VP) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const T* x = logits + row * (long long)VP;
    float largest = to_float(x[0]);
    for (int v = 1; v < V; v++) largest = fmaxf(largest, to_float(x[v]));
    double sum = 0;  // of 50,257 terms, which a chain of fp32 additions would blur
    for (int v = 0; v < V; v++) sum += expf(to_float(x[v]) - largest);
    lse[row] = largest + logf(float(sum));
    losses[row] = lse[row] - to_float(x[targets[row]]);
}

// dlogits = dloss (exp(logits - lse) - [column is the target]), and 0 in the padding. One thread an element.
template <typename T>
__global__ void cross_entropy_backward(T* dlogits, const float* dlosses, const T* logits, const long long* targets,
                                       const float* lse, int rows, int V, int VP) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= rows * (long long)VP) return;
    int row = i / VP, v = i % VP;
    float probability = v < V ? expf(to_float(logits[i]) - lse[row]) : 0;
    float wanted = v == targets[row] ? 1 : 0;
    dlogits[i] = from_float<T>((probability - wanted) * dlosses[row]);
}
