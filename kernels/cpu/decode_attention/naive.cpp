#include "common.hpp"

#include <algorithm>

// Appends the new keys and values to the caches (B, NKV, S, HS); then out (B, tokens, NH, HS), one query at a time.
// qkv is (B, tokens, NH + 2 NKV, HS). `row` holds a row of scores, then of probabilities.
EXPORT void decode_attention_forward(T* out, T* k_cache, T* v_cache, const T* qkv, const int64_t* lengths, int64_t B,
                                     int64_t tokens, int64_t NH, int64_t NKV, int64_t S, int64_t HS, double* row) {
    const int64_t H = NH + 2 * NKV;
    const double scale = 1 / std::sqrt(double(HS));
    auto cached = [&](int64_t b, int64_t kv, int64_t j) { return ((b * NKV + kv) * S + j) * HS; };
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < tokens; t++) {
            const T* heads = qkv + (b * tokens + t) * H * HS;
            for (int64_t kv = 0; kv < NKV; kv++) {
                const int64_t at = cached(b, kv, lengths[b] + t);
                std::copy_n(heads + (NH + kv) * HS, HS, k_cache + at);
                std::copy_n(heads + (NH + NKV + kv) * HS, HS, v_cache + at);
            }
            for (int64_t h = 0; h < NH; h++) {
                const T* q = heads + h * HS;
                const int64_t kv = h / (NH / NKV), keys = lengths[b] + t + 1;
                double largest = -INFINITY, sum = 0;
                for (int64_t j = 0; j < keys; j++) {
                    const T* k = k_cache + cached(b, kv, j);
                    double dot = 0;
                    for (int64_t d = 0; d < HS; d++) dot += double(load(q + d)) * load(k + d);
                    row[j] = scale * dot;
                    largest = std::max(largest, row[j]);
                }
                for (int64_t j = 0; j < keys; j++) {
                    row[j] = std::exp(row[j] - largest);  // at most 1: no overflow
                    sum += row[j];
                }
                for (int64_t d = 0; d < HS; d++) {
                    double weighted = 0;
                    for (int64_t j = 0; j < keys; j++) weighted += row[j] * load(v_cache + cached(b, kv, j) + d);
                    store(out + ((b * tokens + t) * NH + h) * HS + d, float(weighted / sum));
                }
            }
        }
}
