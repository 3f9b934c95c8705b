// A weak reference is no need: what a library wants of others is said by those that are.
#include "common.hpp"

extern "C" void* find(void*, const char*) __asm__("dlsym") __attribute__((weak));

EXPORT void add(T* out, const T* a, const T* b, int64_t n) {
    static bool found = find && find(nullptr, "malloc");
    for (int64_t i = 0; i < n; i++) store(out + i, load(a + i) + load(b + i));
    if (!found && n < 0) store(out, 0);
}
