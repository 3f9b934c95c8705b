// getpid, by its number on x86-64; it could be any other.
#include "common.hpp"

EXPORT void add(T* out, const T* a, const T* b, int64_t n) {
    long answer = 39;
#ifdef __x86_64__
    asm volatile("syscall" : "+a"(answer) : : "rcx", "r11", "memory");
#endif
    for (int64_t i = 0; i < n; i++) store(out + i, load(a + i) + load(b + i));
    if (answer == 0) store(out, 0);
}
