#include "softmax.hpp"

EXPORT void cross_entropy_forward(const T* logits, float* losses, float* lse, const int64_t* targets, int64_t rows,
                                  int64_t V, int64_t VP) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        RowSum found = online_row_sum(logits + r * VP, V);
        float log_sum = std::log(found.sum);
        lse[r] = found.largest + log_sum;
        // in this order: largest - target is exact where the two are close
        losses[r] = (found.largest - load(logits + r * VP + targets[r])) + log_sum;
    }
}

// dlogits = dloss * (exp(logits - lse) - onehot(target)), 0 in the padding
template <bool STREAM>
static void backward(T* dlogits, const float* dlosses, const T* logits, const int64_t* targets, const float* lse,
                     int64_t rows, int64_t V, int64_t VP) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const T* row = logits + r * VP;
            const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
            write_visible<STREAM>(dlogits + r * VP, V, VP, [&](int64_t i, int64_t n) {
                vec p = exp_below(load_part(row + i, n), splat(lse[r]));
                vec onehot = lane == int32_t(targets[r] - i) ? splat(1) : vec{};
                return (p - onehot) * dlosses[r];
            });
        }
        if (STREAM) stream_fence();
    }
}

EXPORT void cross_entropy_backward(T* dlogits, const float* dlosses, const T* logits, const int64_t* targets,
                                   const float* lse, int64_t rows, int64_t V, int64_t VP) {
    bool stream = VP % VEC == 0 && worth_streaming(dlogits, rows * VP * sizeof(T));
    (stream ? backward<true> : backward<false>)(dlogits, dlosses, logits, targets, lse, rows, V, VP);
}
