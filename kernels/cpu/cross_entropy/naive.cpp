#include "common.hpp"

// lse = log of the sum of exp over the first V of VP columns; losses = lse - logits[target]
EXPORT void cross_entropy_forward(const T* logits, float* losses, float* lse, const int64_t* targets, int64_t rows,
                                  int64_t V, int64_t VP) {
    for (int64_t r = 0; r < rows; r++) {
        const T* row = logits + r * VP;
        float largest = load(row);
        for (int64_t c = 1; c < V; c++) largest = std::fmax(largest, load(row + c));
        double sum = 0;
        for (int64_t c = 0; c < V; c++) sum += std::exp(load(row + c) - largest);
        double log_sum = largest + std::log(sum);
        lse[r] = float(log_sum);
        losses[r] = float(log_sum - load(row + targets[r]));
    }
}

// dlogits = dloss * (exp(logits - lse) - onehot(target)), 0 in the padding
EXPORT void cross_entropy_backward(T* dlogits, const float* dlosses, const T* logits, const int64_t* targets,
                                   const float* lse, int64_t rows, int64_t V, int64_t VP) {
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < V; c++) {
            float p = std::exp(load(logits + r * VP + c) - lse[r]);
            store(dlogits + r * VP + c, dlosses[r] * (p - (c == targets[r])));
        }
        for (int64_t c = V; c < VP; c++) store(dlogits + r * VP + c, 0);
    }
}
