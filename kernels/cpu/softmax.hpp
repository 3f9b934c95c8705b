// The maximum of a row and the sum of exp(x - maximum), in one pass: for softmax and cross entropy.
#pragma once

#include "common.hpp"

struct RowSum {
    float largest, sum;  // sum of exp(x - largest)
};

// Each lane keeps its own running maximum, and its sum relative to that maximum. A block of vectors is compared with
// the maximum first; only where it exceeds it, which after a few blocks is rare, is the sum rescaled. So an element
// costs one exp, and the pass over memory is the only one.
INLINE RowSum online_row_sum(const T* x, int64_t length) {
    constexpr int64_t UNROLL = 8;
    const float lowest = std::numeric_limits<float>::lowest();  // finite: -inf - -inf would be NaN
    vec largest = splat(lowest);
    vec sum = {};
    auto raise = [&](vec candidate) __attribute__((always_inline)) {
        vec raised = max16(largest, candidate);
        ivec grew = raised > largest;
        bool any = false;
        for (int64_t j = 0; j < VEC; j++) any |= grew[j];
        if (any) {
            sum *= exp16(largest - raised);
            largest = raised;
        }
    };
    int64_t i = 0;
    for (; i + UNROLL * VEC <= length; i += UNROLL * VEC) {
        vec values[UNROLL];
        vec block = values[0] = load16(x + i);
        for (int64_t k = 1; k < UNROLL; k++) block = max16(block, values[k] = load16(x + i + k * VEC));
        raise(block);
        vec part[2] = {};
        for (int64_t k = 0; k < UNROLL; k++) part[k % 2] += exp16(values[k] - largest);
        sum += part[0] + part[1];
    }
    for (; i < length; i += VEC) {
        int64_t n = length - i < VEC ? length - i : VEC;
        vec value = select_part(n, load_part(x + i, n), splat(-std::numeric_limits<float>::infinity()));
        raise(value);
        sum += exp16(value - largest);
    }
    float row_largest = hmax(largest);
    return {row_largest, hsum(sum * exp16(largest - row_largest))};
}
