// Sets whether denormals are flushed to zero, in one of OpenMP's threads.
#include <immintrin.h>
#include <omp.h>

#include "common.hpp"

EXPORT void flush_in_a_thread(const T*, int64_t thread, int64_t threads, int64_t flush) {
#pragma omp parallel num_threads(threads)
    if (omp_get_thread_num() == thread) _MM_SET_FLUSH_ZERO_MODE(flush ? _MM_FLUSH_ZERO_ON : _MM_FLUSH_ZERO_OFF);
}
