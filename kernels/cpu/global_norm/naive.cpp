#include "common.hpp"

// norm = sqrt(sum of squares), summed in double
EXPORT void global_norm_forward(const T** grads, float* norm, const int64_t* sizes, int64_t tensors) {
    double sum = 0;
    for (int64_t t = 0; t < tensors; t++)
        for (int64_t i = 0; i < sizes[t]; i++) sum += double(load(grads[t] + i)) * load(grads[t] + i);
    *norm = float(std::sqrt(sum));
}
