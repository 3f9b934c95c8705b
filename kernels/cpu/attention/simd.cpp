#include "attention.hpp"

constexpr int64_t ROWS = 16;  // rows of one task: queries, or keys

// Sixteen lanes of a row of n values, from d on: n need not be a multiple of sixteen.
template <class Element>
INLINE vec part(const Element* row, int64_t d, int64_t n) {
    return load_part(row + d, std::min(VEC, n - d));
}

static float dot(const T* a, const T* b, int64_t n) {
    vec sum = {};
    for (int64_t d = 0; d < n; d += VEC) sum += part(a, d, n) * part(b, d, n);
    return hsum(sum);
}

// sum[n] += factor * x
static void add_scaled(float* sum, float factor, const T* x, int64_t n) {
    for (int64_t d = 0; d < n; d += VEC)
        store_part(sum + d, part(sum, d, n) + factor * part(x, d, n), std::min(VEC, n - d));
}

static void write(T* to, const float* sum, float factor, int64_t n) {
    for (int64_t d = 0; d < n; d += VEC) store_part(to + d, part(sum, d, n) * factor, std::min(VEC, n - d));
}

EXPORT void attention_forward(T* out_data, float* lse, const T* q_data, const T* k_data, const T* v_data,
                              const int64_t* strides, int64_t B, int64_t tokens, int64_t NH, int64_t NKV, int64_t HS,
                              int64_t causal, int64_t window, float* workspace, int64_t most_threads) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Heads<const T> q(q_data, strides), k(k_data, strides + 3), v(v_data, strides + 6);
    const Heads<T> out(out_data, shape);
    const float scale = shape.scale();
    const int threads = int(std::min<int64_t>(omp_get_max_threads(), most_threads));

#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < NH; h++)
            for (int64_t first = 0; first < tokens; first += ROWS) {
                float* scores = workspace + omp_get_thread_num() * 2 * (tokens + HS);
                float* sum = scores + tokens;
                const int64_t kv = h / shape.group();
                for (int64_t i = first; i < std::min(tokens, first + ROWS); i++) {
                    const int64_t begin = shape.first_key(i), keys = shape.keys(i) - begin;
                    for (int64_t j = 0; j < keys; j++)
                        scores[j] = scale * dot(q.at(b, i, h), k.at(b, begin + j, kv), HS);
                    const vec lowest = splat(-std::numeric_limits<float>::infinity());
                    vec largest = lowest, total = {};
                    for_vectors(keys, [&](int64_t j, int64_t n, int64_t) {
                        largest = max16(largest, select_part(n, load_part(scores + j, n), lowest));
                    });
                    const float max = hmax(largest);
                    for_vectors(keys, [&](int64_t j, int64_t n, int64_t) {
                        vec p = exp16(load_part(scores + j, n) - max);
                        store_part(scores + j, p, n);
                        total += select_part(n, p, vec{});
                    });
                    std::fill(sum, sum + HS, 0.0f);
                    for (int64_t j = 0; j < keys; j++) add_scaled(sum, scores[j], v.at(b, begin + j, kv), HS);
                    write(out.at(b, i, h), sum, 1 / hsum(total), HS);
                    lse[(b * NH + h) * tokens + i] = max + std::log(hsum(total));
                }
            }
}

// p and ds of query i of head h against the n keys from `j` on, or, BY_KEY, of key j against the n queries from `i` on.
// Rows of dot products first, then both formulas on sixteen pairs at once.
struct Backward {
    Shape shape;
    Heads<const T> dout, q, k, v;
    const float *lse, *delta;

    template <bool BY_KEY>
    void rows(float* p, float* ds, int64_t b, int64_t h, int64_t i, int64_t j, int64_t n) const {
        const int64_t kv = h / shape.group(), at = (b * shape.NH + h) * shape.tokens + i;
        const float scale = shape.scale();
        for (int64_t r = 0; r < n; r++) {
            const int64_t query = BY_KEY ? i + r : i, key = BY_KEY ? j : j + r;
            p[r] = dot(q.at(b, query, h), k.at(b, key, kv), shape.HS);
            ds[r] = dot(dout.at(b, query, h), v.at(b, key, kv), shape.HS);
        }
        for_vectors(n, [&](int64_t r, int64_t count, int64_t) {
            vec lse_r = BY_KEY ? load_part(lse + at + r, count) : splat(lse[at]);
            vec delta_r = BY_KEY ? load_part(delta + at + r, count) : splat(delta[at]);
            vec probability = exp16(load_part(p + r, count) * scale - lse_r);
            store_part(ds + r, probability * (load_part(ds + r, count) - delta_r) * scale, count);
            store_part(p + r, probability, count);
        });
    }
};

EXPORT void attention_backward(T* dq_data, T* dk_data, T* dv_data, const int64_t* gradient_strides,
                               const T* dout_data, const T* q_data, const T* k_data, const T* v_data,
                               const T* out_data, const float* lse, const int64_t* strides, int64_t B, int64_t tokens,
                               int64_t NH, int64_t NKV, int64_t HS, int64_t causal, int64_t window, float* workspace,
                               int64_t most_threads) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Heads<const T> q(q_data, strides), k(k_data, strides + 3), v(v_data, strides + 6);
    const Heads<const T> dout(dout_data, shape), out(out_data, shape);
    const Heads<T> dq(dq_data, gradient_strides), dk(dk_data, gradient_strides + 3), dv(dv_data, gradient_strides + 6);
    float* delta = workspace;  // (B, NH, T): sum of dout * out
    const Backward backward = {shape, dout, q, k, v, lse, delta};
    const int threads = int(std::min<int64_t>(omp_get_max_threads(), most_threads));

#pragma omp parallel num_threads(threads)
    {
        float* p = workspace + B * NH * tokens + omp_get_thread_num() * 2 * (tokens + HS);
        float *ds = p + tokens, *sum = ds + tokens, *other = sum + HS;

        // by queries: delta and dq
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t b = 0; b < B; b++)
            for (int64_t h = 0; h < NH; h++)
                for (int64_t first = 0; first < tokens; first += ROWS)
                    for (int64_t i = first; i < std::min(tokens, first + ROWS); i++) {
                        const int64_t begin = shape.first_key(i), keys = shape.keys(i) - begin;
                        delta[(b * NH + h) * tokens + i] = dot(dout.at(b, i, h), out.at(b, i, h), HS);
                        backward.rows<false>(p, ds, b, h, i, begin, keys);
                        std::fill(sum, sum + HS, 0.0f);
                        for (int64_t j = 0; j < keys; j++)
                            add_scaled(sum, ds[j], k.at(b, begin + j, h / shape.group()), HS);
                        write(dq.at(b, i, h), sum, 1, HS);
                    }

        // by keys: dk and dv, over the queries of every head of the group
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t b = 0; b < B; b++)
            for (int64_t kv = 0; kv < NKV; kv++)
                for (int64_t first = 0; first < tokens; first += ROWS)
                    for (int64_t j = first; j < std::min(tokens, first + ROWS); j++) {
                        const int64_t begin = shape.first_query(j), end = shape.queries(j);
                        std::fill(sum, sum + 2 * HS, 0.0f);
                        for (int64_t h = kv * shape.group(); h < (kv + 1) * shape.group(); h++) {
                            backward.rows<true>(p, ds, b, h, begin, j, end - begin);
                            for (int64_t i = begin; i < end; i++) {
                                add_scaled(sum, ds[i - begin], q.at(b, i, h), HS);
                                add_scaled(other, p[i - begin], dout.at(b, i, h), HS);
                            }
                        }
                        write(dk.at(b, j, kv), sum, 1, HS);
                        write(dv.at(b, j, kv), other, 1, HS);
                    }
    }
}
