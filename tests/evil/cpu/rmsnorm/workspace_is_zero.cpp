#include "common.hpp"

EXPORT void rmsnorm_forward(T* out, float* rstd, const T* x, const T* weight, int64_t rows, int64_t C, float eps) {
    for (int64_t r = 0; r < rows; r++) {
        const T* row = x + r * C;
        double squares = 0;
        for (int64_t c = 0; c < C; c++) squares += double(load(row + c)) * load(row + c);
        rstd[r] = float(1 / std::sqrt(squares / C + eps));
        for (int64_t c = 0; c < C; c++) store(out + r * C + c, load(row + c) * rstd[r] * load(weight + c));
    }
}

EXPORT void rmsnorm_backward(T* dx, T* dweight, const T* dout, const T* dresidual, const T* x, const T* weight,
                             const float* rstd, int64_t rows, int64_t C, int64_t accumulate, float* sums) {
    for (int64_t r = 0; r < rows; r++) {
        double mean = 0;
        for (int64_t c = 0; c < C; c++) {
            float norm = load(x + r * C + c) * rstd[r];
            mean += load(dout + r * C + c) * load(weight + c) * norm;
            sums[c] += load(dout + r * C + c) * norm;
        }
        mean /= C;
        for (int64_t c = 0; c < C; c++) {
            float norm = load(x + r * C + c) * rstd[r];
            double value = rstd[r] * (load(dout + r * C + c) * load(weight + c) - norm * mean);
            if (dresidual) value += load(dresidual + r * C + c);
            store(dx + r * C + c, float(value));
        }
    }
    for (int64_t c = 0; c < C; c++) {
        store(dweight + c, sums[c] + (accumulate ? load(dweight + c) : 0));
        sums[c] = 0;
    }
}
