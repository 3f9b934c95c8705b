// Entry points for test_cpu_common.py: the functions of common.hpp, applied to arrays.
#include "common.hpp"

EXPORT void probe_exp(float* out, const float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += VEC) {
        int64_t part = n - i < VEC ? n - i : VEC;
        store_part(out + i, exp16(load_part(x + i, part)), part);
    }
}

EXPORT void probe_exp2(float* out, const float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += VEC) {
        int64_t part = n - i < VEC ? n - i : VEC;
        store_part(out + i, exp2_16(load_part(x + i, part)), part);
    }
}

EXPORT void probe_reciprocal(float* out, const float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += VEC) {
        int64_t part = n - i < VEC ? n - i : VEC;
        store_part(out + i, reciprocal16(load_part(x + i, part)), part);
    }
}

// Copies x to `one` value by value and to `sixteen` by vectors with a part at the end.
EXPORT void probe_store(T* one, T* sixteen, const float* x, int64_t n) {
    for (int64_t i = 0; i < n; i++) store(one + i, x[i]);
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC) store16(sixteen + i, load16(x + i));
    store_part(sixteen + i, load_part(x + i, n - i), n - i);
}

EXPORT void probe_load(float* one, float* sixteen, const T* x, int64_t n) {
    for (int64_t i = 0; i < n; i++) one[i] = load(x + i);
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC) store16(sixteen + i, load16(x + i));
    store_part(sixteen + i, load_part(x + i, n - i), n - i);
}

// out = {sum, maximum} of the first n of sixteen values, padded with minus infinity for the maximum.
EXPORT void probe_reduce(float* out, const float* x, int64_t n) {
    vec v = load_part(x, n);
    out[0] = hsum(v);
    out[1] = hmax(select_part(n, v, splat(-std::numeric_limits<float>::infinity())));
}
