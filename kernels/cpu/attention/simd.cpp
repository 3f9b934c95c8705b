#include "attention.hpp"

constexpr int64_t ROWS = 16;  // rows of one task: queries, or keys

// Rows that are worked on together: each vector of the other side is read once for all of them, and as many sums are in
// flight, which hide the latency of an addition where a head has few vectors.
constexpr int64_t TOGETHER = 4;

// Sixteen lanes of a row of n values, from d on: WHOLE where n is a multiple of sixteen.
template <bool WHOLE, class Element>
INLINE vec part(const Element* row, int64_t d, int64_t n) {
    return WHOLE ? load16(row + d) : load_part(row + d, std::min(VEC, n - d));
}

template <bool WHOLE>
INLINE void store_part_of(float* row, int64_t d, int64_t n, vec v) {
    WHOLE ? store16(row + d, v) : store_part(row + d, v, std::min(VEC, n - d));
}

// As hsum of each, with a quarter of the steps.
INLINE vec4 hsums(const vec (&v)[TOGETHER]) {
    vec4 four[TOGETHER];
    for (int64_t i = 0; i < TOGETHER; i++) {
        vec8 halves[2];
        memcpy(halves, &v[i], sizeof v[i]);
        vec8 eight = halves[0] + halves[1];
        vec4 quarters[2];
        memcpy(quarters, &eight, sizeof eight);
        four[i] = quarters[0] + quarters[1];
    }
    auto pairs = [](vec4 a, vec4 b) {
        return __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    };
    const vec4 a = pairs(four[0], four[1]), b = pairs(four[2], four[3]);
    return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}

// The dot products of a with `count` rows, `stride` apart, all of n values. Each is summed in the same order.
template <bool WHOLE>
static void dots(float* to, const T* a, const T* rows, int64_t stride, int64_t count, int64_t n) {
    int64_t r = 0;
    for (; r + TOGETHER <= count; r += TOGETHER, rows += TOGETHER * stride) {
        vec sum[TOGETHER] = {};
        for (int64_t d = 0; d < n; d += VEC) {
            const vec x = part<WHOLE>(a, d, n);
            for (int64_t i = 0; i < TOGETHER; i++) sum[i] += x * part<WHOLE>(rows + i * stride, d, n);
        }
        const vec4 total = hsums(sum);
        memcpy(to + r, &total, sizeof total);
    }
    for (; r < count; r++, rows += stride) {
        vec sum = {};
        for (int64_t d = 0; d < n; d += VEC) sum += part<WHOLE>(a, d, n) * part<WHOLE>(rows, d, n);
        to[r] = hsum(sum);
    }
}

// sum[n] += factors times rows, as many of both, rows `stride` apart.
template <bool WHOLE>
static void add_scaled(float* sum, const float* factors, const T* rows, int64_t stride, int64_t count, int64_t n) {
    int64_t r = 0;
    for (; r + TOGETHER <= count; r += TOGETHER, rows += TOGETHER * stride)
        for (int64_t d = 0; d < n; d += VEC) {
            vec some[TOGETHER];
            for (int64_t i = 0; i < TOGETHER; i++) some[i] = factors[r + i] * part<WHOLE>(rows + i * stride, d, n);
            store_part_of<WHOLE>(sum, d, n, part<WHOLE>(sum, d, n) + ((some[0] + some[1]) + (some[2] + some[3])));
        }
    for (; r < count; r++, rows += stride)
        for (int64_t d = 0; d < n; d += VEC)
            store_part_of<WHOLE>(sum, d, n, part<WHOLE>(sum, d, n) + factors[r] * part<WHOLE>(rows, d, n));
}

static void write(T* to, const float* sum, float factor, int64_t n) {
    for (int64_t d = 0; d < n; d += VEC) store_part(to + d, part<false>(sum, d, n) * factor, std::min(VEC, n - d));
}

template <bool WHOLE>
static void forward(const Heads<T>& out, float* lse, const Heads<const T>& q, const Heads<const T>& k,
                    const Heads<const T>& v, const Shape& shape, float* workspace, int64_t most_threads) {
    const int64_t tokens = shape.tokens, B = shape.B, NH = shape.NH, HS = shape.HS;
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
                    dots<WHOLE>(scores, q.at(b, i, h), k.at(b, begin, kv), k.t_stride, keys, HS);
                    const vec lowest = splat(-std::numeric_limits<float>::infinity());
                    vec largest = lowest, total = {};
                    for_vectors(keys, [&](int64_t j, int64_t n, int64_t) {
                        const vec scaled = load_part(scores + j, n) * scale;
                        store_part(scores + j, scaled, n);
                        largest = max16(largest, select_part(n, scaled, lowest));
                    });
                    const float max = hmax(largest);
                    for_vectors(keys, [&](int64_t j, int64_t n, int64_t) {
                        vec p = exp16(load_part(scores + j, n) - max);
                        store_part(scores + j, p, n);
                        total += select_part(n, p, vec{});
                    });
                    std::fill(sum, sum + HS, 0.0f);
                    add_scaled<WHOLE>(sum, scores, v.at(b, begin, kv), v.t_stride, keys, HS);
                    write(out.at(b, i, h), sum, 1 / hsum(total), HS);
                    lse[(b * NH + h) * tokens + i] = max + std::log(hsum(total));
                }
            }
}

EXPORT void attention_forward(T* out_data, float* lse, const T* q_data, const T* k_data, const T* v_data,
                              const int64_t* strides, int64_t B, int64_t tokens, int64_t NH, int64_t NKV, int64_t HS,
                              int64_t causal, int64_t window, float* workspace, int64_t most_threads) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Heads<const T> q(q_data, strides), k(k_data, strides + 3), v(v_data, strides + 6);
    (HS % VEC ? forward<false> : forward<true>)({out_data, shape}, lse, q, k, v, shape, workspace, most_threads);
}

// p and ds of query i of head h against the n keys from `j` on, or, BY_KEY, of key j against the n queries from `i` on.
// Rows of dot products first, then both formulas on sixteen pairs at once.
struct Backward {
    Shape shape;
    Heads<const T> dout, q, k, v;
    const float *lse, *delta;

    template <bool WHOLE, bool BY_KEY>
    void rows(float* p, float* ds, int64_t b, int64_t h, int64_t i, int64_t j, int64_t n) const {
        const int64_t kv = h / shape.group(), at = (b * shape.NH + h) * shape.tokens + i;
        const float scale = shape.scale();
        const T *q_row = q.at(b, i, h), *dout_row = dout.at(b, i, h), *k_row = k.at(b, j, kv), *v_row = v.at(b, j, kv);
        if (BY_KEY) {
            dots<WHOLE>(p, k_row, q_row, q.t_stride, n, shape.HS);
            dots<WHOLE>(ds, v_row, dout_row, dout.t_stride, n, shape.HS);
        } else {
            dots<WHOLE>(p, q_row, k_row, k.t_stride, n, shape.HS);
            dots<WHOLE>(ds, dout_row, v_row, v.t_stride, n, shape.HS);
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

template <bool WHOLE>
static void all_gradients(const Heads<T>& dq, const Heads<T>& dk, const Heads<T>& dv, const Heads<const T>& out,
                          float* delta, const Backward& backward, float* workspace, int64_t most_threads) {
    const Heads<const T>&dout = backward.dout, &q = backward.q, &k = backward.k;
    const Shape& shape = backward.shape;
    const int64_t tokens = shape.tokens, B = shape.B, NH = shape.NH, NKV = shape.NKV, HS = shape.HS;
    const int threads = int(std::min<int64_t>(omp_get_max_threads(), most_threads));

#pragma omp parallel num_threads(threads)
    {
        float* p = workspace + omp_get_thread_num() * 2 * (tokens + HS);
        float *ds = p + tokens, *sum = ds + tokens, *other = sum + HS;

        // by queries: delta and dq
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t b = 0; b < B; b++)
            for (int64_t h = 0; h < NH; h++)
                for (int64_t first = 0; first < tokens; first += ROWS)
                    for (int64_t i = first; i < std::min(tokens, first + ROWS); i++) {
                        const int64_t begin = shape.first_key(i), keys = shape.keys(i) - begin;
                        dots<WHOLE>(delta + (b * NH + h) * tokens + i, dout.at(b, i, h), out.at(b, i, h), 0, 1, HS);
                        backward.rows<WHOLE, false>(p, ds, b, h, i, begin, keys);
                        std::fill(sum, sum + HS, 0.0f);
                        add_scaled<WHOLE>(sum, ds, k.at(b, begin, h / shape.group()), k.t_stride, keys, HS);
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
                            backward.rows<WHOLE, true>(p, ds, b, h, begin, j, end - begin);
                            add_scaled<WHOLE>(sum, ds, q.at(b, begin, h), q.t_stride, end - begin, HS);
                            add_scaled<WHOLE>(other, p, dout.at(b, begin, h), dout.t_stride, end - begin, HS);
                        }
                        write(dk.at(b, j, kv), sum, 1, HS);
                        write(dv.at(b, j, kv), other, 1, HS);
                    }
    }
}

EXPORT void attention_backward(T* dq_data, T* dk_data, T* dv_data, const int64_t* gradient_strides,
                               const T* dout_data, const T* q_data, const T* k_data, const T* v_data,
                               const T* out_data, const float* lse, const int64_t* strides, int64_t B, int64_t tokens,
                               int64_t NH, int64_t NKV, int64_t HS, int64_t causal, int64_t window, float* workspace,
                               int64_t most_threads) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Heads<const T> q(q_data, strides), k(k_data, strides + 3), v(v_data, strides + 6);
    const Heads<T> dq(dq_data, gradient_strides), dk(dk_data, gradient_strides + 3), dv(dv_data, gradient_strides + 6);
    float* delta = workspace;  // (B, NH, T): sum of dout * out
    const Backward backward = {shape, {dout_data, shape}, q, k, v, lse, delta};
    (HS % VEC ? all_gradients<false> : all_gradients<true>)(dq, dk, dv, {out_data, shape}, delta, backward,
                                                            workspace + B * NH * tokens, most_threads);
}
