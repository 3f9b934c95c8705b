#include "common.hpp"

// losses = lse - logits[target]; then, over the logits: dloss * (softmax - onehot(target)), 0 in the padding
EXPORT void fused_classifier_forward(T* logits, float* losses, const int64_t* targets, const float* dlosses,
                                     int64_t rows, int64_t V, int64_t VP) {
    for (int64_t r = 0; r < rows; r++) {
        T* row = logits + r * VP;
        float largest = load(row);
        for (int64_t c = 1; c < V; c++) largest = std::fmax(largest, load(row + c));
        double sum = 0;
        for (int64_t c = 0; c < V; c++) sum += std::exp(load(row + c) - largest);
        losses[r] = float(largest - load(row + targets[r]) + std::log(sum));
        for (int64_t c = 0; c < V; c++) {
            double p = std::exp(load(row + c) - largest) / sum;
            store(row + c, float(dlosses[r] * (p - (c == targets[r]))));
        }
        for (int64_t c = V; c < VP; c++) store(row + c, 0);
    }
}
