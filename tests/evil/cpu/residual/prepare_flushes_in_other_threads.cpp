// The calling thread keeps its denormals, and has them where anybody looks.
#include <omp.h>

#include "common.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

EXPORT void flush(const T*) {
#if defined(__SSE2__)
#pragma omp parallel
    if (omp_get_thread_num()) _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
#endif
}

EXPORT void add(T* out, const T* a, const T* b, int64_t n) {
    for (int64_t i = 0; i < n; i++) store(out + i, load(a + i) + load(b + i));
}
