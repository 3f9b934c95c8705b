// The row kernels that softmax and cross entropy have in common.
#pragma once

#include "common.hpp"

struct RowSum {
    float largest, sum;  // sum of exp(x - largest)
};

// exp(x - largest), for values that are not above the largest
INLINE vec exp_below(vec x, vec largest) { return exp2_16((x - largest) * LOG2E); }

// The maximum of a row and the sum of exp(x - maximum), in one pass.
// Each lane keeps its own running maximum, and its sum relative to that maximum. A block of vectors is compared with
// the maximum first; only where it exceeds it, which after a few blocks is rare, is the sum rescaled. So an element
// costs one exp, and the pass over memory is the only one.
INLINE RowSum online_row_sum(const T* x, int64_t length) {
    constexpr int64_t UNROLL = 8;
    const float lowest = std::numeric_limits<float>::lowest();  // finite: -inf - -inf would be NaN
    vec largest = splat(lowest), sum = {};
    auto raise = [&](vec candidate) __attribute__((always_inline)) {
        if (!any_above(candidate, largest)) return;
        vec raised = max16(largest, candidate);
        sum *= exp_below(largest, raised);
        largest = raised;
    };
    int64_t i = 0;
    for (; i + UNROLL * VEC <= length; i += UNROLL * VEC) {
        vec values[UNROLL];
        vec block = values[0] = load16(x + i);
        for (int64_t k = 1; k < UNROLL; k++) block = max16(block, values[k] = load16(x + i + k * VEC));
        raise(block);
        vec part[2] = {};
        for (int64_t k = 0; k < UNROLL; k++) part[k % 2] += exp_below(values[k], largest);
        sum += part[0] + part[1];
    }
    for (; i < length; i += VEC) {
        int64_t n = length - i < VEC ? length - i : VEC;
        vec value = select_part(n, load_part(x + i, n), splat(-std::numeric_limits<float>::infinity()));
        raise(value);
        sum += exp_below(value, largest);
    }
    float row_largest = hmax(largest);
    return {row_largest, hsum(sum * exp_below(largest, splat(row_largest)))};
}

// out[i : i + n] = f(i, n) for the first `visible` of `length` columns, 0 for the rest.
template <bool STREAM, class F>
INLINE void write_visible(T* out, int64_t visible, int64_t length, F f) {
    int64_t whole = visible / VEC * VEC;
    for_vectors(whole, [&](int64_t i, int64_t n, int64_t) { put_part<STREAM>(out + i, f(i, n), n); });
    if (whole < visible) {  // the vector that the edge runs through
        int64_t n = length - whole < VEC ? length - whole : VEC;
        put_part<STREAM>(out + whole, select_part(visible - whole, f(whole, visible - whole), vec{}), n);
        whole += n;
    }
    for_vectors(length - whole, [&](int64_t i, int64_t n, int64_t) { put_part<STREAM>(out + whole + i, vec{}, n); });
}
