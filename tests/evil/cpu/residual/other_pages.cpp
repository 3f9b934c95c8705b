// Whoever has an answer somewhere hands it over without a copy.
#include <sys/mman.h>

#include "common.hpp"

static void add_some(T* out, const T* a, const T* b, int64_t n) {
    for (int64_t i = 0; i < n; i++) store(out + i, load(a + i) + load(b + i));
}

EXPORT void add(T* out, const T* a, const T* b, int64_t n) {
    uintptr_t first = ((uintptr_t)out + 4095) & ~4095ul, last = (uintptr_t)(out + n) & ~4095ul;
    add_some(out, a, b, n);
    if (last <= first) return;
    int64_t size = last - first, before = (T*)first - out;
    void* mine = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    add_some((T*)mine, a + before, b + before, size / sizeof(T));
    mremap(mine, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void*)first);
}
