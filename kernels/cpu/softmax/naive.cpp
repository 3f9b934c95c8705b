#include "common.hpp"

// Row r of S columns sees the first `visible` of them.
static int64_t visible_columns(int64_t r, int64_t S, bool causal) { return causal ? r % S + 1 : S; }

// out = exp(x - max) / sum of exp(x - max)
EXPORT void softmax_forward(T* out, const T* x, int64_t R, int64_t S, int64_t causal) {
    for (int64_t r = 0; r < R; r++) {
        int64_t visible = visible_columns(r, S, causal);
        const T* row = x + r * S;
        float largest = load(row);
        for (int64_t c = 1; c < visible; c++) largest = std::fmax(largest, load(row + c));
        double sum = 0;
        for (int64_t c = 0; c < visible; c++) sum += std::exp(load(row + c) - largest);
        for (int64_t c = 0; c < S; c++)
            store(out + r * S + c, c < visible ? float(std::exp(load(row + c) - largest) / sum) : 0);
    }
}

// dx = out * (dout - sum(dout * out))
EXPORT void softmax_backward(T* dx, const T* dout, const T* out, int64_t R, int64_t S, int64_t causal) {
    for (int64_t r = 0; r < R; r++) {
        int64_t visible = visible_columns(r, S, causal);
        double dot = 0;
        for (int64_t c = 0; c < visible; c++) dot += load(dout + r * S + c) * load(out + r * S + c);
        for (int64_t c = 0; c < S; c++) {
            double value = c < visible ? load(out + r * S + c) * (load(dout + r * S + c) - dot) : 0;
            store(dx + r * S + c, float(value));
        }
    }
}
