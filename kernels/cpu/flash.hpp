// Attention in tiles, by whatever multiplies them: the running softmax, and the gradients of a block of scores.
//
// Scores are kept transposed, [key][query]: a vector holds sixteen queries, so that maximum, sum and mask of a query
// stay in its lane and no step works across lanes.
#pragma once

#include "attention.hpp"
#include "gemm.hpp"

// Scratch of one thread, handed out piece by piece. The Python file knows the sum.
struct Scratch {
    float* next;
    float* floats(int64_t n) {
        float* p = next;
        next += round_up(n, VEC);
        return p;
    }
};

// Two rows as one row of units: pairs of bf16 where they are paired, else the first row alone.
INLINE vec pair(vec even, [[maybe_unused]] vec odd) {
#if PAIRED
    return (vec)(__builtin_convertvector(narrow(even), uvec) | __builtin_convertvector(narrow(odd), uvec) << 16);
#else
    return even;
#endif
}

// A row of a left operand that is read along k: bf16 where they are paired, so that two neighbours make a unit.
INLINE void store_row(float* row, int64_t i, vec v) {
#if PAIRED
    store16((bf16*)row + i, v);
#else
    store16(row + i, v);
#endif
}

// How many of the sixteen queries from `query` on must not see `key`.
INLINE int64_t hidden(bool causal, int64_t key, int64_t query) {
    return causal ? std::clamp<int64_t>(key - query, 0, VEC) : 0;
}

// How many of them see it, or are before those that do.
INLINE int64_t not_gone(int64_t window, int64_t key, int64_t query) {
    return std::clamp<int64_t>(key + window - query, 0, VEC);
}

constexpr int64_t NEVER = INT64_MIN / 2;  // for `ahead`

// The running softmax of a block of queries: maximum of the scores before they are scaled, and sum of exponentials
// below it. It is subtracted first: a multiply-add would leave of far scores what the product of the largest was
// rounded by.
template <int64_t QUERIES>
struct Running {
    static constexpr int64_t VECS = QUERIES / VEC;
    vec max[VECS], sum[VECS];
    Running() {
        for (int64_t c = 0; c < VECS; c++) max[c] = splat(-std::numeric_limits<float>::infinity()), sum[c] = vec{};
    }
};

// Turns the scores s[keys][QUERIES] into exponentials, as units of keys, and takes them into the running softmax.
// rescale[QUERIES] receives the factor by which everything summed before has shrunk; returns whether any is not 1.
template <int64_t QUERIES>
static bool softmax_block(float* s, Running<QUERIES>& running, float* rescale, int64_t keys, int64_t k0, int64_t q0,
                          const Shape& shape) {
    constexpr int64_t VECS = QUERIES / VEC;
    const float scale = shape.scale();
    const vec lowest = splat(-std::numeric_limits<float>::infinity());
    const bool causal = shape.causal && k0 + keys > q0 + 1;  // does the mask touch this block?
    const bool window = k0 < shape.first_key(q0 + QUERIES - 1);
    const int64_t from = std::max<int64_t>(0, shape.first_key(q0) - k0) / UNIT * UNIT;  // no query sees those before
    bool changed = false;
    vec max[VECS];
    for (int64_t c = 0; c < VECS; c++) {
        vec largest[2] = {lowest, lowest};
        for (int64_t r = from; r < keys; r++) {
            vec v = load16(s + r * QUERIES + c * VEC);
            if (causal) v = select_part(hidden(true, k0 + r, q0 + c * VEC), lowest, v);
            if (window) v = select_part(not_gone(shape.window, k0 + r, q0 + c * VEC), v, lowest);
            largest[r % 2] = max16(largest[r % 2], v);
        }
        max[c] = max16(running.max[c], max16(largest[0], largest[1]));
        for (int64_t lane = 0; lane < VEC; lane++) changed |= max[c][lane] != running.max[c][lane];
        const vec before = running.max[c];
        running.max[c] = max[c];
        if (window) max[c] = max[c] == lowest ? vec{} : max[c];  // sees nothing yet: -inf - -inf would be NaN
        vec factor = exp16((before - max[c]) * scale);
        store16(rescale + c * VEC, factor);
        running.sum[c] *= factor;
    }
    for (int64_t r = from; r < keys; r += UNIT)
        for (int64_t c = 0; c < VECS; c++) {
            vec p[2] = {};
            for (int64_t u = 0; u < UNIT && r + u < keys; u++) {
                p[u] = exp16((load16(s + (r + u) * QUERIES + c * VEC) - max[c]) * scale);
                if (causal) p[u] = select_part(hidden(true, k0 + r + u, q0 + c * VEC), vec{}, p[u]);
                if (window) p[u] = select_part(not_gone(shape.window, k0 + r + u, q0 + c * VEC), p[u], vec{});
            }
            running.sum[c] += p[0] + p[1];
            store16(s + r / UNIT * QUERIES + c * VEC, pair(p[0], p[1]));
        }
    return changed;
}

// ds = p (dp - delta) scale for one block; p over s and ds over dp, both as rows along queries. Where units are pairs,
// `ds_units` receives ds along keys too; else ds itself is such a one. Only of queries `first` to `end` of the block.
template <int64_t QUERIES>
static void backward_scores(float* s, float* dp, float* ds_units, const float* lse, const float* delta, int64_t keys,
                            int64_t first, int64_t end, int64_t k0, int64_t q0, const Shape& shape) {
    const float scale = shape.scale();
    const bool window = k0 < shape.first_key(q0 + QUERIES - 1);
    for (int64_t r = 0; r < keys; r += UNIT)
        for (int64_t j = first; j < end; j += VEC) {
            vec ds[2] = {};
            for (int64_t u = 0; u < UNIT && r + u < keys; u++) {
                float *s_row = s + (r + u) * QUERIES, *dp_row = dp + (r + u) * QUERIES;
                const int64_t masked = hidden(shape.causal, k0 + r + u, q0 + j);
                vec p = exp16(load16(s_row + j) * scale - load16(lse + j));
                ds[u] = p * (load16(dp_row + j) - load16(delta + j)) * scale;
                if (masked) {
                    p = select_part(masked, vec{}, p);
                    ds[u] = select_part(masked, vec{}, ds[u]);
                }
                if (window) {
                    const int64_t seen = not_gone(shape.window, k0 + r + u, q0 + j);
                    p = select_part(seen, p, vec{});
                    ds[u] = select_part(seen, ds[u], vec{});
                }
                store_row(s_row, j, p);
                store_row(dp_row, j, ds[u]);
            }
            if (PAIRED) store16(ds_units + r / UNIT * QUERIES + j, pair(ds[0], ds[1]));
        }
}

struct Gradients {
    Heads<T> dq, dk, dv;
};
struct Inputs {
    Heads<const T> dout, q, k, v, out;
    const float* lse;
};

// Cuts `heads` independent heads further, so that all threads have work; a piece is a multiple of `multiple` tokens.
static int64_t piece_of(int64_t tokens, int64_t heads, int64_t threads, int64_t multiple) {
    if (heads >= 2 * threads) return tokens;
    return even_piece(tokens, std::max<int64_t>(1, tokens * heads / (4 * threads)), multiple);
}
