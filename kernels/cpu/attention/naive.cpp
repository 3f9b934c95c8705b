#include "attention.hpp"

static double dot(const T* a, const T* b, int64_t n) {
    double sum = 0;
    for (int64_t d = 0; d < n; d++) sum += double(load(a + d)) * load(b + d);
    return sum;
}

// out and lse; `row` holds one row of scores, then of probabilities.
EXPORT void attention_forward(T* out_data, float* lse, const T* q_data, const T* k_data, const T* v_data,
                              const int64_t* strides, int64_t B, int64_t tokens, int64_t NH, int64_t NKV, int64_t HS,
                              int64_t causal, int64_t window, double* row) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Heads<const T> q(q_data, strides), k(k_data, strides + 3), v(v_data, strides + 6);
    const Heads<T> out(out_data, shape);
    const double scale = 1 / std::sqrt(double(HS));
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < NH; h++)
            for (int64_t i = 0; i < tokens; i++) {
                const int64_t kv = h / shape.group(), begin = shape.first_key(i), keys = shape.keys(i);
                double largest = -INFINITY, sum = 0;
                for (int64_t j = begin; j < keys; j++) {
                    row[j] = scale * dot(q.at(b, i, h), k.at(b, j, kv), HS);
                    largest = std::max(largest, row[j]);
                }
                for (int64_t j = begin; j < keys; j++) {
                    row[j] = std::exp(row[j] - largest);  // at most 1: no overflow
                    sum += row[j];
                }
                for (int64_t d = 0; d < HS; d++) {
                    double weighted = 0;
                    for (int64_t j = begin; j < keys; j++) weighted += row[j] * load(v.at(b, j, kv) + d);
                    store(out.at(b, i, h) + d, float(weighted / sum));
                }
                lse[(b * NH + h) * tokens + i] = float(largest + std::log(sum));
            }
}

// With p = exp(scale q k - lse) and ds = p (dp - delta) scale: dq = ds k, dk = ds^T q, dv = p^T dout.
// dk and dv sum over the queries of every head of the group. `row` holds a row of ds, then the two sums of a key.
EXPORT void attention_backward(T* dq_data, T* dk_data, T* dv_data, const int64_t* gradient_strides,
                               const T* dout_data, const T* q_data, const T* k_data, const T* v_data,
                               const T* out_data, const float* lse, const int64_t* strides, int64_t B, int64_t tokens,
                               int64_t NH, int64_t NKV, int64_t HS, int64_t causal, int64_t window, double* row) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Heads<const T> q(q_data, strides), k(k_data, strides + 3), v(v_data, strides + 6);
    const Heads<const T> dout(dout_data, shape), out(out_data, shape);
    const Heads<T> dq(dq_data, gradient_strides), dk(dk_data, gradient_strides + 3), dv(dv_data, gradient_strides + 6);
    const double scale = 1 / std::sqrt(double(HS));
    const int64_t group = shape.group();

    auto probability = [&](int64_t b, int64_t h, int64_t i, int64_t j) {
        return std::exp(scale * dot(q.at(b, i, h), k.at(b, j, h / group), HS) - lse[(b * NH + h) * tokens + i]);
    };
    auto score_gradient = [&](int64_t b, int64_t h, int64_t i, int64_t j, double p) {
        double dp = dot(dout.at(b, i, h), v.at(b, j, h / group), HS);
        double delta = dot(dout.at(b, i, h), out.at(b, i, h), HS);
        return p * (dp - delta) * scale;
    };

    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < NH; h++)
            for (int64_t i = 0; i < tokens; i++) {
                for (int64_t j = shape.first_key(i); j < shape.keys(i); j++)
                    row[j] = score_gradient(b, h, i, j, probability(b, h, i, j));
                for (int64_t d = 0; d < HS; d++) {
                    double sum = 0;
                    for (int64_t j = shape.first_key(i); j < shape.keys(i); j++)
                        sum += row[j] * load(k.at(b, j, h / group) + d);
                    store(dq.at(b, i, h) + d, float(sum));
                }
            }

    for (int64_t b = 0; b < B; b++)
        for (int64_t kv = 0; kv < NKV; kv++)
            for (int64_t j = 0; j < tokens; j++) {
                double *dk_sum = row, *dv_sum = row + HS;
                std::fill(row, row + 2 * HS, 0.0);
                for (int64_t h = kv * group; h < (kv + 1) * group; h++)
                    for (int64_t i = shape.first_query(j); i < shape.queries(j); i++) {
                        double p = probability(b, h, i, j), ds = score_gradient(b, h, i, j, p);
                        for (int64_t d = 0; d < HS; d++) {
                            dk_sum[d] += ds * load(q.at(b, i, h) + d);
                            dv_sum[d] += p * load(dout.at(b, i, h) + d);
                        }
                    }
                for (int64_t d = 0; d < HS; d++) {
                    store(dk.at(b, j, kv) + d, float(dk_sum[d]));
                    store(dv.at(b, j, kv) + d, float(dv_sum[d]));
                }
            }
}
