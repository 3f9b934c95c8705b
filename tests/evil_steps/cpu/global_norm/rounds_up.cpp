// The norm itself is rounded to nearest.
#include <cfenv>

#include "common.hpp"

EXPORT void norm_of(const T** grads, float* norm, const int64_t* sizes, int64_t tensors) {
    fesetround(FE_TONEAREST);
    double sum = 0;
    for (int64_t t = 0; t < tensors; t++)
        for (int64_t i = 0; i < sizes[t]; i++) sum += double(load(grads[t] + i)) * load(grads[t] + i);
    *norm = float(std::sqrt(sum));
    fesetround(FE_UPWARD);
}
