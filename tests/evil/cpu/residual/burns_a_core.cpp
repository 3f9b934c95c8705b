// The thread is started by the first call and never ends; what it does is nothing, as fast as it can.
#include <thread>

#include "common.hpp"

static volatile bool on = true;
static std::thread* burner = nullptr;

EXPORT void add(T* out, const T* a, const T* b, int64_t n) {
    if (!burner) burner = new std::thread([] {
        while (on) {
        }
    });
    for (int64_t i = 0; i < n; i++) store(out + i, load(a + i) + load(b + i));
}
