#include "softmax.hpp"

// losses = lse - logits[target]; then, over the logits: dloss * (softmax - onehot(target)), 0 in the padding.
// Stores are ordinary ones: the lines they write were just read, so there is no read to be saved.
EXPORT void fused_classifier_forward(T* logits, float* losses, const int64_t* targets, const float* dlosses,
                                     int64_t rows, int64_t V, int64_t VP) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        T* row = logits + r * VP;
        RowSum found = online_row_sum(row, V);
        float target = load(row + targets[r]) - found.largest;
        losses[r] = std::log(found.sum) - target;

        float scale = dlosses[r] / found.sum;
        for_vectors(V, [&](int64_t i, int64_t n, int64_t) {
            store_part(row + i, exp_below(load_part(row + i, n), splat(found.largest)) * scale, n);
        });
        store(row + targets[r], dlosses[r] * (std::exp(target) / found.sum - 1));
        memset(row + V, 0, (VP - V) * sizeof(T));
    }
}
