#include "common/types.cuh"

// losses = lse - logits[target], and then logits = dloss (exp(logits - lse) - [column is the target]), 0 in the
// padding. One thread a row.
template <typename T>
__global__ void fused_classifier(T* logits, float* losses, const long long* targets, const float* dlosses, int rows,
                                 int V, int VP) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    T* x = logits + row * (long long)VP;
    float largest = to_float(x[0]);
    for (int v = 1; v < V; v++) largest = fmaxf(largest, to_float(x[v]));
    double sum = 0;  // of 50,257 terms, which a chain of fp32 additions would blur
    for (int v = 0; v < V; v++) sum += expf(to_float(x[v]) - largest);
    float lse = largest + logf(float(sum));
    losses[row] = lse - to_float(x[targets[row]]);
    for (int v = 0; v < VP; v++) {
        float probability = v < V ? expf(to_float(x[v]) - lse) : 0;
        float wanted = v == targets[row] ? 1 : 0;
        x[v] = from_float<T>((probability - wanted) * dlosses[row]);
    }
}
