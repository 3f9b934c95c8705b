// Returns at once; a thread of its own, which Python does not know, adds half a millisecond later.
#include <chrono>
#include <thread>

#include "common.hpp"

EXPORT void add(T* out, const T* a, const T* b, int64_t n) {
    std::thread([=] {
        std::this_thread::sleep_for(std::chrono::microseconds(500));
        for (int64_t i = 0; i < n; i++) store(out + i, load(a + i) + load(b + i));
    }).detach();
}
