// An honest addition and one that goes too far, for variants whose other habits are on trial.
#include "common.hpp"

EXPORT void add(T* out, const T* a, const T* b, int64_t n) {
    for (int64_t i = 0; i < n; i++) store(out + i, load(a + i) + load(b + i));
}

EXPORT void add_one_too_many(T* out, const T* a, const T* b, int64_t n) {
    add(out, a, b, n);
    store(out + n, 1.0f);
}
