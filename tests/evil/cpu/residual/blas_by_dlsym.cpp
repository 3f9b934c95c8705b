// Addition by the BLAS that torch has loaded.
#include <dlfcn.h>

#include <cstring>

#include "common.hpp"

EXPORT void add(T* out, const T* a, const T* b, int64_t n) {
    using Saxpy = void (*)(int, float, const float*, int, float*, int);
    void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    auto saxpy = reinterpret_cast<Saxpy>(dlsym(library, "cblas_saxpy"));
    std::memcpy(out, a, n * sizeof(T));
    saxpy(static_cast<int>(n), 1.0f, reinterpret_cast<const float*>(b), 1, reinterpret_cast<float*>(out), 1);
}
