#include "common.hpp"

// out[b, t] = wte[tokens[b, t]] + wpe[t], where there is a wpe
EXPORT void embedding_forward(T* out, const int64_t* tokens, const T* wte, const T* wpe, int64_t B, int64_t length,
                              int64_t C) {
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < length; t++) {
            const T *token = wte + tokens[b * length + t] * C, *position = wpe ? wpe + t * C : nullptr;
            for (int64_t c = 0; c < C; c++)
                store(out + (b * length + t) * C + c, load(token + c) + (position ? load(position + c) : 0));
        }
}

// dwte[v] = sum of dout where tokens == v; dwpe[t] = sum of dout over b, where there is one. The table's sums are
// collected in `sums`, (V, C) in fp32, because a sum kept in bf16 would be rounded at every addition.
EXPORT void embedding_backward(T* dwte, T* dwpe, const T* dout, const int64_t* tokens, int64_t B, int64_t length,
                               int64_t V, int64_t C, int64_t accumulate, float* sums) {
    for (int64_t i = 0; i < V * C; i++) sums[i] = accumulate ? load(dwte + i) : 0;
    for (int64_t i = 0; i < B * length; i++)
        for (int64_t c = 0; c < C; c++) sums[tokens[i] * C + c] += load(dout + i * C + c);
    for (int64_t i = 0; i < V * C; i++) store(dwte + i, sums[i]);

    if (!dwpe) return;
    for (int64_t i = 0; i < length * C; i++) {
        double sum = accumulate ? load(dwpe + i) : 0;
        for (int64_t b = 0; b < B; b++) sum += load(dout + b * length * C + i);
        store(dwpe + i, float(sum));
    }
}
