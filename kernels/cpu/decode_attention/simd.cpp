#include "common.hpp"

#include <algorithm>

constexpr int64_t CHUNK = 256;  // keys of a task; what a task leaves is joined afterwards
constexpr int64_t BLOCK = 64;   // keys that all queries of a key/value head meet one after the other, from the cache

// As in reference/decode_attention.py, with T (here the storage type) called `tokens`.
struct Shape {
    int64_t B, tokens, NH, NKV, S, HS;
    int64_t H() const { return NH + 2 * NKV; }
    int64_t group() const { return NH / NKV; }  // query heads for one key/value head
    int64_t rows() const { return group() * tokens; }
    int64_t chunks() const { return (S + CHUNK - 1) / CHUNK; }
    int64_t width() const { return (HS + VEC - 1) / VEC * VEC; }
    const T* head(const T* qkv, int64_t b, int64_t t, int64_t h) const {
        return qkv + ((b * tokens + t) * H() + h) * HS;
    }
};

// What one query made of one chunk: the largest score, the sum of exp(score - largest), and that of the values weighted
// so. Beside it the query itself, in fp32. Rows of width() floats are padded with zeros.
struct Part {
    float *query, *values, *largest, *sum;
    Part(float* workspace, const Shape& s, int64_t b, int64_t kv, int64_t chunk, int64_t row) {
        const int64_t index = ((b * s.NKV + kv) * s.chunks() + chunk) * s.rows() + row;
        query = workspace + index * (2 * s.width() + VEC);
        values = query + s.width();
        largest = values + s.width();
        sum = largest + 1;
    }
};

// One half of a's and b's lanes, one of a, one of b in turn, plus the other half so.
INLINE vec fold(vec a, vec b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23) +
           __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// The sum of the lanes of each of sixteen vectors, in order.
INLINE vec lane_sums(vec (&v)[VEC]) {
#pragma GCC unroll 4
    for (int64_t half = VEC / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int64_t i = 0; i < half; i++) v[i] = fold(v[i], v[i + half]);
    return v[0];
}

// ROWS queries times 16 / ROWS keys, from k on: of query r and key i in lane r * KEYS + i. Where there are only n keys, the
// last one again for the rest.
template <int ROWS>
INLINE vec products(const Part (&part)[ROWS], const T* k, int64_t n, int64_t HS) {
    constexpr int64_t KEYS = VEC / ROWS;
    vec sum[VEC] = {};
    const T* key[KEYS];
#pragma GCC unroll 16
    for (int64_t i = 0; i < KEYS; i++) key[i] = k + std::min(i, n - 1) * HS;
    auto add = [&](int64_t d, auto load) __attribute__((always_inline)) {
        vec q[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) q[r] = load16(part[r].query + d);
#pragma GCC unroll 16
        for (int64_t i = 0; i < KEYS; i++) {
            const vec some = load(key[i] + d);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) sum[r * KEYS + i] += q[r] * some;
        }
    };
    int64_t d = 0;
    for (; d + VEC <= HS; d += VEC) add(d, [](const T* p) __attribute__((always_inline)) { return load16(p); });
    if (d < HS) add(d, [&](const T* p) __attribute__((always_inline)) { return load_part(p, HS - d); });
    return lane_sums(sum);
}

// Columns d to d + 16 VECTORS of the sums of values, each times its factor, plus n rows of v, each times its p. `last`
// lanes of the last vector exist. `ahead`, if not null: rows that are asked for meanwhile.
template <int ROWS, int VECTORS>
INLINE void add_columns(const Part* part, int64_t d, const float* factor, const float (*p)[BLOCK], int64_t first,
                        int64_t n, const T* v, const T* ahead, int64_t HS, int64_t last) {
    vec sum[ROWS][VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) sum[r][i] = load16(part[r].values + d + i * VEC) * factor[r];
    for (int64_t j = first; j < n; j++) {
        vec some[VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS - 1; i++) some[i] = load16(v + j * HS + d + i * VEC);
        some[VECTORS - 1] = load_part(v + j * HS + d + (VECTORS - 1) * VEC, last);
        if (ahead)
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; i += 4 / sizeof(T)) prefetch(ahead + j * HS + d + i * VEC);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const vec weight = splat(p[r][j]);
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; i++) sum[r][i] += weight * some[i];
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) store16(part[r].values + d + i * VEC, sum[r][i]);
}

template <int ROWS>
static void add_values(const Part* part, const float* factor, const float (*p)[BLOCK], int64_t first, int64_t n,
                       const T* v, const T* ahead, int64_t HS) {
    for (int64_t d = 0; d < HS; d += 4 * VEC) {
        const int64_t columns = std::min(4 * VEC, HS - d), vectors = (columns + VEC - 1) / VEC;
        const int64_t last = columns - (vectors - 1) * VEC;
        (vectors == 4   ? add_columns<ROWS, 4>
         : vectors == 3 ? add_columns<ROWS, 3>
         : vectors == 2 ? add_columns<ROWS, 2>
                        : add_columns<ROWS, 1>)(part, d, factor, p, first, n, v, ahead, HS, last);
    }
}

// exp(score - largest) of the first n scores in place, and the largest of all so far; returns by how much what was
// summed before shrinks.
static float weigh(const Part& part, float* p, int64_t n) {
    const vec lowest = splat(-std::numeric_limits<float>::infinity());
    vec top = splat(*part.largest), total = {};
    for (int64_t j = 0; j < n; j += VEC) top = max16(top, select_part(std::min(VEC, n - j), load16(p + j), lowest));
    const float largest = hmax(top), factor = exp16(splat(*part.largest - largest))[0];
    for (int64_t j = 0; j < n; j += VEC) {
        const vec weight = exp16(select_part(std::min(VEC, n - j), load16(p + j), lowest) - largest);
        store16(p + j, weight);
        total += weight;
    }
    *part.largest = largest;
    *part.sum = *part.sum * factor + hsum(total);
    return factor;
}

// ROWS queries meet a block of keys and values, of which they see the first n[r]: as many of them, or fewer where the
// block has the new tokens. `ahead`: whether they are the first ones that meet it, and ask for what comes next.
template <int ROWS>
static void attend(const Part (&part)[ROWS], const int64_t (&n)[ROWS], const T* k, const T* v, int64_t HS, float scale,
                   bool ahead) {
    constexpr int64_t KEYS = VEC / ROWS;
    alignas(64) float p[ROWS][BLOCK] = {};
    const int64_t most = *std::max_element(n, n + ROWS), common = *std::min_element(n, n + ROWS);
    for (int64_t j = 0; j < most; j += KEYS) {
        const vec found = products<ROWS>(part, k + j * HS, most - j, HS) * scale;
        for (int r = 0; r < ROWS; r++) memcpy(p[r] + j, (const float*)&found + r * KEYS, KEYS * sizeof(float));
        for (int64_t i = 0; ahead && i < KEYS * HS; i += 64 / sizeof(T)) prefetch(v + j * HS + i);
    }
    float factor[ROWS];
    for (int r = 0; r < ROWS; r++) factor[r] = n[r] > 0 ? weigh(part[r], p[r], n[r]) : 1;
    if (common > 0) add_values<ROWS>(part, factor, p, 0, common, v, ahead ? k + BLOCK * HS : nullptr, HS);
    for (int r = 0; r < ROWS; r++) {  // 0 times a value that a query does not see might be NaN
        const float rest = common > 0 ? 1 : factor[r];
        if (n[r] > std::max<int64_t>(common, 0))
            add_values<1>(part + r, &rest, p + r, std::max<int64_t>(common, 0), n[r], v, nullptr, HS);
    }
}

// The new keys and values that belong into one chunk, and then what every query makes of it.
static void attend_chunk(T* k, T* v, const T* qkv, float* workspace, const Shape& s, int64_t b, int64_t kv,
                         int64_t chunk, int64_t length) {
    const int64_t begin = chunk * CHUNK, end = std::min(begin + CHUNK, length + s.tokens);
    for (int64_t j = std::max(begin, length); j < end; j++) {
        std::copy_n(s.head(qkv, b, j - length, s.NH + kv), s.HS, k + j * s.HS);
        std::copy_n(s.head(qkv, b, j - length, s.NH + s.NKV + kv), s.HS, v + j * s.HS);
    }
    for (int64_t row = 0; row < s.rows(); row++) {
        const Part part(workspace, s, b, kv, chunk, row);
        const T* q = s.head(qkv, b, row % s.tokens, kv * s.group() + row / s.tokens);
        for (int64_t d = 0; d < s.width(); d += VEC) {
            store16(part.query + d, load_part(q + d, std::min(VEC, s.HS - d)));
            store16(part.values + d, vec{});
        }
        *part.largest = -std::numeric_limits<float>::infinity();
        *part.sum = 0;
    }
    const float scale = float(1 / std::sqrt(double(s.HS)));
    for (int64_t j = begin; j < end; j += BLOCK) {
        const T *k_block = k + j * s.HS, *v_block = v + j * s.HS;
        auto part = [&](int64_t row) { return Part(workspace, s, b, kv, chunk, row); };
        auto seen = [&](int64_t row) { return std::min({BLOCK, end - j, length + row % s.tokens + 1 - j}); };
        int64_t row = 0;
        for (; row + 4 <= s.rows(); row += 4)
            attend<4>({part(row), part(row + 1), part(row + 2), part(row + 3)},
                      {seen(row), seen(row + 1), seen(row + 2), seen(row + 3)}, k_block, v_block, s.HS, scale, !row);
        for (; row < s.rows(); row++) attend<1>({part(row)}, {seen(row)}, k_block, v_block, s.HS, scale, !row);
    }
}

// One query's parts as one: each relative to the largest score of all.
static void join(T* out, float* workspace, const Shape& s, int64_t b, int64_t kv, int64_t row, int64_t chunks) {
    const Part first(workspace, s, b, kv, 0, row);
    float largest = *first.largest, sum = 0;
    for (int64_t c = 1; c < chunks; c++) largest = std::max(largest, *Part(workspace, s, b, kv, c, row).largest);
    for (int64_t c = 0; c < chunks; c++) {
        const Part part(workspace, s, b, kv, c, row);
        const float factor = exp16(splat(*part.largest - largest))[0];
        sum += *part.sum * factor;
        for (int64_t d = 0; d < s.width(); d += VEC) {
            const vec here = load16(part.values + d) * factor;
            store16(first.values + d, c ? load16(first.values + d) + here : here);
        }
    }
    for (int64_t d = 0; d < s.HS; d += VEC)
        store_part(out + d, load16(first.values + d) * (1 / sum), std::min(VEC, s.HS - d));
}

// out (B, tokens, NH, HS), and the new keys and values in the caches (B, NKV, S, HS). qkv (B, tokens, NH + 2 NKV, HS).
EXPORT void decode_attention_forward(T* out, T* k_cache, T* v_cache, const T* qkv, const int64_t* lengths, int64_t B,
                                     int64_t tokens, int64_t NH, int64_t NKV, int64_t S, int64_t HS, float* workspace) {
    const Shape s = {B, tokens, NH, NKV, S, HS};
#pragma omp parallel
    {
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t b = 0; b < B; b++)
            for (int64_t kv = 0; kv < NKV; kv++)
                for (int64_t chunk = 0; chunk < s.chunks(); chunk++) {
                    const int64_t at = (b * NKV + kv) * S * HS;
                    if (chunk * CHUNK < lengths[b] + tokens)
                        attend_chunk(k_cache + at, v_cache + at, qkv, workspace, s, b, kv, chunk, lengths[b]);
                }
#pragma omp for collapse(3) schedule(static)
        for (int64_t b = 0; b < B; b++)
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t h = 0; h < NH; h++) {
                    const int64_t chunks = (lengths[b] + t + CHUNK) / CHUNK;  // that hold keys 0 … lengths[b] + t
                    join(out + ((b * tokens + t) * NH + h) * HS, workspace, s, b, h / s.group(),
                         h % s.group() * tokens + t, chunks);
                }
    }
}
