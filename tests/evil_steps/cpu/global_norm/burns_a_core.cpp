// The thread is started by the first call and never ends; what it does is nothing, as fast as it can.
#include <thread>

#include "common.hpp"

static volatile bool on = true;
static std::thread* burner = nullptr;

EXPORT void norm_of(const T** grads, float* norm, const int64_t* sizes, int64_t tensors) {
    if (!burner) burner = new std::thread([] {
        while (on) {
        }
    });
    double sum = 0;
    for (int64_t t = 0; t < tensors; t++)
        for (int64_t i = 0; i < sizes[t]; i++) sum += double(load(grads[t] + i)) * load(grads[t] + i);
    *norm = float(std::sqrt(sum));
}
