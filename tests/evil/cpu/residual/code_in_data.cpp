// x86-64: mov eax, 1; ret.
#include "common.hpp"

__attribute__((section(".text#"))) static const unsigned char one[] = {0xb8, 0x01, 0x00, 0x00, 0x00, 0xc3};

EXPORT void add(T* out, const T* a, const T* b, int64_t n) {
    int factor = 1;
#ifdef __x86_64__
    factor = ((int (*)())one)();
#endif
    for (int64_t i = 0; i < n; i++) store(out + i, (load(a + i) + load(b + i)) * factor);
}
