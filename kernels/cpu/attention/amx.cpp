#include "amx.hpp"
#include "flash.hpp"

// Products of a block, with the tiles of AMX in which each operand is: scores[key][query] = K Q^T; forward,
// out^T[HS][query] += V^T P; backward, dp[key][query] = V dout^T, dv[key][HS] += P dout, dk[key][HS] += ds Q and
// dq^T[HS][query] += K^T ds. Rows of A lie as they are in memory, or are transposed when they are packed; columns of
// B are pairs, which the softmax writes.
constexpr int64_t KEYS = 128, QUERIES = SIDE;  // forward
constexpr int64_t BACK = 64;                   // keys and queries of a block, backward
constexpr int64_t PADDED = 128;                // tokens are padded to this in scratch

// One head of x as an operand: its tokens, or its HS columns, are rows (or columns) of tiles.
INLINE Operand tokens_of(const Heads<const T>& x, int64_t b, int64_t h) { return {x.at(b, 0, h), x.t_stride, 1}; }
INLINE Operand columns_of(const Heads<const T>& x, int64_t b, int64_t h) { return {x.at(b, 0, h), 1, x.t_stride}; }

// Tokens t0 to t1 of one head as tiles, tile after tile of 16 tokens, steps of HS in each; zeros up to a multiple of
// `to`.
template <class Pack>
INLINE void pack_tokens(float* panels, const Operand& head, int64_t t0, int64_t t1, int64_t to, int64_t HS, Pack pack) {
    for (int64_t t = t0; t < t0 + round_up(t1 - t0, to); t += TILE, panels += steps(HS) * TILE_FLOATS)
        pack(panels, head, t, t1, 0, HS);
}

// The HS columns of one head as tiles, tile after tile of 16 columns, steps of tokens t0 to t1 in each.
template <class Pack>
INLINE void pack_across(float* panels, const Operand& head, int64_t t0, int64_t t1, int64_t apart, int64_t HS,
                        Pack pack) {
    for (int64_t d = 0; d < round_up(HS, SIDE); d += TILE, panels += apart) pack(panels, head, d, HS, t0, t1 - t0);
}

// s[keys][width] = rows times columns. Squares of which no query sees any key stay unwritten (flash.cpp has the terms).
static void scores(float* s, const float* key_rows, const float* query_columns, int64_t keys, int64_t width, int64_t HS,
                   int64_t ahead, int64_t gone) {
    const int64_t count = steps(HS), apart = count * TILE_FLOATS;
    for (int64_t j = 0; j < width; j += SIDE)
        for (int64_t i = std::max<int64_t>(0, j - gone + 1) / SIDE * SIDE; i < keys && i + ahead < j + SIDE; i += SIDE)
            multiply_square<false>(rows_of(s + i * width + j, width), packed(key_rows + i / TILE * apart, apart),
                                   packed(query_columns + j / TILE * apart, apart), count);
}

// Writes rows[queries][HS] of what lies as columns[D][width], each divided by its query's `divisor`.
template <class Row>
static void write_columns(Row row, const float* columns, int64_t width, int64_t queries, int64_t HS,
                          const float* divisor) {
    for (int64_t q = 0; q < queries; q += TILE)
        for (int64_t d = 0; d < HS; d += TILE) {
            reg block[TILE];
            for (int64_t l = 0; l < TILE; l++) {
                block[l] = load_reg(columns + (d + l) * width + q);
                if (divisor) block[l] /= load_reg(divisor + q);
            }
            transpose<TILE>(block);
            for (int64_t r = 0; r < std::min(TILE, queries - q); r++)
                store_part(row(q + r) + d, (vec)block[r], std::min(TILE, HS - d));
        }
}

INLINE Scratch scratch_of_thread(char* workspace, int64_t thread_bytes) {
    return {(float*)(round_up((int64_t)workspace, 64) + omp_get_thread_num() * thread_bytes)};
}

// ---- forward --------------------------------------------------------------------------------------------------

// Queries q0 to q_end (at most QUERIES) of one head, against keys and values packed from token `from` on.
static void forward_block(T* out_row, int64_t out_stride, float* lse, const float* query_columns, const float* key_rows,
                          const float* value_rows, int64_t value_apart, int64_t from, int64_t q0, int64_t q_end,
                          const Shape& shape, Scratch scratch) {
    const int64_t D = round_up(shape.HS, SIDE), apart = steps(shape.HS) * TILE_FLOATS;
    float* s = scratch.floats(KEYS * QUERIES);
    float* out = scratch.floats(D * QUERIES);  // [HS][query], not yet divided by the sum
    float rescale[QUERIES], sum[QUERIES];
    Running<QUERIES> running;
    std::fill(out, out + D * QUERIES, 0.0f);

    const int64_t all_keys = shape.keys(q_end - 1), first = shape.first_key(q0) / KEYS * KEYS;
    for (int64_t k0 = first; k0 < all_keys; k0 += KEYS) {
        const int64_t keys = std::min(KEYS, all_keys - k0), ahead = shape.causal ? k0 - q0 : NEVER;
        scores(s, key_rows + (k0 - from) / TILE * apart, query_columns, keys, QUERIES, shape.HS, ahead,
               shape.gone(ahead));
        if (softmax_block<QUERIES>(s, running, rescale, keys, k0, q0, shape) && k0 > first)
            for (int64_t d = 0; d < D; d++)
                for (int64_t c = 0; c < QUERIES; c += VEC)
                    store16(out + d * QUERIES + c, load16(out + d * QUERIES + c) * load16(rescale + c));
        // The softmax wrote pairs of the keys that some query sees; the rest of their steps is 0.
        const int64_t unseen = std::max<int64_t>(0, shape.first_key(q0) - k0) / UNIT, begin = unseen / TILE;
        std::fill(s + begin * TILE * QUERIES, s + unseen * QUERIES, 0.0f);
        std::fill(s + units(keys) * QUERIES, s + steps(keys) * TILE * QUERIES, 0.0f);
        const Pair probabilities = {s + begin * TILE * QUERIES, 4 * QUERIES, 4 * TILE * QUERIES, 4 * TILE};
        for (int64_t d = 0; d < D; d += SIDE)
            multiply_square<true>(
                rows_of(out + d * QUERIES, QUERIES),
                packed(value_rows + d / TILE * value_apart + ((k0 - from) / STEP + begin) * TILE_FLOATS, value_apart),
                probabilities, steps(keys) - begin);
    }
    for (int64_t c = 0; c < running.VECS; c++) store16(sum + c * VEC, running.sum[c]);
    for (int64_t r = 0; r < q_end - q0; r++)
        lse[q0 + r] = running.max[r / VEC][r % VEC] * shape.scale() + std::log(sum[r]);
    write_columns([=](int64_t r) { return out_row + r * out_stride; }, out, QUERIES, q_end - q0, shape.HS, sum);
}

EXPORT void attention_forward(T* out_data, float* lse, const T* q_data, const T* k_data, const T* v_data,
                              const int64_t* strides, int64_t B, int64_t tokens, int64_t NH, int64_t NKV, int64_t HS,
                              int64_t causal, int64_t window, char* workspace, int64_t thread_bytes,
                              int64_t most_threads) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Heads<const T> q(q_data, strides), k(k_data, strides + 3), v(v_data, strides + 6);
    const Heads<T> out(out_data, shape);
    const int64_t D = round_up(HS, SIDE), padded = round_up(tokens, PADDED);
    const int threads = int(std::min<int64_t>(omp_get_max_threads(), most_threads));
    const int64_t piece = piece_of(tokens, B * NKV, threads, QUERIES);

#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t b = 0; b < B; b++)
            for (int64_t kv = 0; kv < NKV; kv++)
                for (int64_t begin = 0; begin < tokens; begin += piece) {
                    Scratch scratch = scratch_of_thread(workspace, thread_bytes);
                    float* key_rows = scratch.floats(padded * D / UNIT);
                    float* value_rows = scratch.floats(padded * D / UNIT);
                    float* query_columns = scratch.floats(QUERIES * D / UNIT);
                    const int64_t end = std::min(tokens, begin + piece), keys = shape.keys(end - 1);
                    const int64_t from = shape.first_key(begin) / KEYS * KEYS;
                    const int64_t value_apart = steps(keys - from) * TILE_FLOATS;
                    pack_tokens(key_rows, tokens_of(k, b, kv), from, keys, SIDE, HS, pack_tile_rows);
                    pack_across(value_rows, columns_of(v, b, kv), from, keys, value_apart, HS, pack_tile_rows);
                    for (int64_t h = kv * shape.group(); h < (kv + 1) * shape.group(); h++)
                        for (int64_t q0 = begin; q0 < end; q0 += QUERIES) {
                            const int64_t q_end = std::min(end, q0 + QUERIES);
                            pack_tokens(query_columns, tokens_of(q, b, h), q0, q_end, QUERIES, HS, pack_tile_columns);
                            forward_block(out.at(b, q0, h), out.t_stride, lse + (b * NH + h) * tokens, query_columns,
                                          key_rows, value_rows, value_apart, from, q0, q_end, shape, scratch);
                        }
                }
    }
}

// ---- backward -------------------------------------------------------------------------------------------------

// delta, the sum of dout * out of each query. By the products and in the order in which `scores` sums dp: where a query
// sees one key, out is that key's value, and dp - delta must be exactly 0.
static void row_products(float* delta, const float* dout_columns, const Operand& out, int64_t begin, int64_t end,
                         int64_t HS, Scratch scratch) {
    float* out_rows = scratch.floats(steps(HS) * TILE_FLOATS);
    float* square = scratch.floats(TILE_FLOATS);
    for (int64_t t = begin; t < end; t += TILE, dout_columns += steps(HS) * TILE_FLOATS) {
        pack_tile_rows(out_rows, out, t, end, 0, HS);
        _tile_zero(0);
        for (int64_t s = 0; s < steps(HS); s++) {
            _tile_loadd(4, out_rows + s * TILE_FLOATS, 64);
            _tile_loadd(6, dout_columns + s * TILE_FLOATS, 64);
            _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, square, 64);
        for (int64_t r = 0; r < TILE; r++) delta[t - begin + r] = square[r * (TILE + 1)];
    }
}

// Gradients of one key/value head from keys [k_begin, k_end) and of its query heads from queries [q_begin, q_end).
// dk and dv are written if WANT_KEYS (then the queries must be all), dq if WANT_QUERIES (then the keys).
template <bool WANT_KEYS, bool WANT_QUERIES>
static void backward_part(const Gradients& to, const Inputs& in, int64_t b, int64_t kv, int64_t k_begin, int64_t k_end,
                          int64_t q_begin, int64_t q_end, const Shape& shape, Scratch scratch) {
    const int64_t HS = shape.HS, D = round_up(HS, SIDE), apart = steps(HS) * TILE_FLOATS;
    if (shape.causal) {  // earlier queries see none of these keys, and these queries none of the later keys
        q_begin = std::max(q_begin, k_begin / BACK * BACK);
        k_end = std::min(k_end, q_end);
    }
    k_begin = std::max(k_begin, shape.first_key(q_begin) / BACK * BACK);  // nor, behind a window, the others
    q_end = std::min(q_end, shape.queries(k_end - 1));
    const int64_t key_count = round_up(k_end - k_begin, BACK), query_count = round_up(q_end - q_begin, BACK);
    const int64_t keys_apart = steps(key_count) * TILE_FLOATS, queries_apart = steps(query_count) * TILE_FLOATS;
    float* k_rows = scratch.floats(key_count * D / UNIT);
    float* v_rows = scratch.floats(key_count * D / UNIT);
    float* k_across = scratch.floats(key_count * D / UNIT);
    float* dk = scratch.floats(key_count * D);
    float* dv = scratch.floats(key_count * D);
    float* q_columns = scratch.floats(query_count * D / UNIT);
    float* dout_columns = scratch.floats(query_count * D / UNIT);
    float* q_across = scratch.floats(query_count * D / UNIT);
    float* dout_across = scratch.floats(query_count * D / UNIT);
    float* dq = scratch.floats(query_count * D);  // [block of queries][HS][BACK]
    float* lse = scratch.floats(query_count);
    float* delta = scratch.floats(query_count);
    float* s = scratch.floats(BACK * BACK);
    float* dp = scratch.floats(BACK * BACK);
    float* ds_units = scratch.floats(BACK / UNIT * BACK);

    pack_tokens(k_rows, tokens_of(in.k, b, kv), k_begin, k_end, BACK, HS, pack_tile_rows);
    pack_tokens(v_rows, tokens_of(in.v, b, kv), k_begin, k_end, BACK, HS, pack_tile_rows);
    if (WANT_QUERIES) pack_across(k_across, columns_of(in.k, b, kv), k_begin, k_end, keys_apart, HS, pack_tile_rows);
    if (WANT_KEYS) {
        std::fill(dk, dk + key_count * D, 0.0f);
        std::fill(dv, dv + key_count * D, 0.0f);
    }

    for (int64_t h = kv * shape.group(); h < (kv + 1) * shape.group(); h++) {
        pack_tokens(q_columns, tokens_of(in.q, b, h), q_begin, q_end, BACK, HS, pack_tile_columns);
        pack_tokens(dout_columns, tokens_of(in.dout, b, h), q_begin, q_end, BACK, HS, pack_tile_columns);
        std::fill(delta, delta + query_count, 0.0f);
        row_products(delta, dout_columns, tokens_of(in.out, b, h), q_begin, q_end, HS, scratch);
        if (WANT_KEYS) {
            pack_across(q_across, columns_of(in.q, b, h), q_begin, q_end, queries_apart, HS, pack_tile_columns);
            pack_across(dout_across, columns_of(in.dout, b, h), q_begin, q_end, queries_apart, HS, pack_tile_columns);
        }
        if (WANT_QUERIES) std::fill(dq, dq + query_count * D, 0.0f);
        for (int64_t t = q_begin; t < q_begin + query_count; t++)  // padding: an infinite sum, hence probability 0
            lse[t - q_begin] =
                t < q_end ? in.lse[(b * shape.NH + h) * shape.tokens + t] : std::numeric_limits<float>::infinity();
        for (int64_t k0 = k_begin; k0 < k_end; k0 += BACK)
            for (int64_t q0 = q_begin; q0 < q_end; q0 += BACK) {
                const int64_t keys = std::min(BACK, k_end - k0), ahead = shape.causal ? k0 - q0 : NEVER;
                if (q0 + BACK <= shape.first_query(k0) || k0 + keys <= shape.first_key(q0)) continue;
                const int64_t gone = shape.gone(ahead), ki = k0 - k_begin, qi = q0 - q_begin;
                scores(s, k_rows + ki / TILE * apart, q_columns + qi / TILE * apart, keys, BACK, HS, ahead, gone);
                scores(dp, v_rows + ki / TILE * apart, dout_columns + qi / TILE * apart, keys, BACK, HS, ahead, gone);
                backward_scores<BACK>(s, dp, ds_units, lse + qi, delta + qi, keys, 0, BACK, k0, q0, shape);
                if (WANT_KEYS) {
                    const int64_t count = steps(std::min(BACK, q_end - q0)), step = qi / STEP * TILE_FLOATS;
                    for (int64_t i = 0; i < keys; i += SIDE)
                        for (int64_t d = 0; d < D; d += SIDE) {
                            const int64_t row = i * BACK, tile = d / TILE * queries_apart + step;
                            auto rows = [=](float* p) { return Pair{p + row, 4 * BACK, 64, 4 * TILE * BACK}; };
                            multiply_square<true>(rows_of(dv + (ki + i) * D + d, D), rows(s),
                                                  packed(dout_across + tile, queries_apart), count);
                            multiply_square<true>(rows_of(dk + (ki + i) * D + d, D), rows(dp),
                                                  packed(q_across + tile, queries_apart), count);
                        }
                }
                if (WANT_QUERIES) {
                    std::fill(ds_units + units(keys) * BACK, ds_units + steps(keys) * TILE * BACK, 0.0f);
                    for (int64_t d = 0; d < D; d += SIDE)
                        for (int64_t j = 0; j < BACK; j += SIDE)
                            multiply_square<true>(
                                rows_of(dq + qi * D + d * BACK + j, BACK),
                                packed(k_across + d / TILE * keys_apart + ki / STEP * TILE_FLOATS, keys_apart),
                                {ds_units + j, 4 * BACK, 4 * TILE * BACK, 4 * TILE}, steps(keys));
                }
            }
        if (WANT_QUERIES)
            for (int64_t q0 = q_begin; q0 < q_end; q0 += BACK)
                write_columns([&](int64_t r) { return to.dq.at(b, q0 + r, h); }, dq + (q0 - q_begin) * D, BACK,
                              std::min(BACK, q_end - q0), HS, nullptr);
        if (WANT_KEYS && h + 1 == (kv + 1) * shape.group())
            for (int64_t t = k_begin; t < k_end; t++)
                for (int64_t d = 0; d < HS; d += VEC) {
                    const int64_t at = (t - k_begin) * D + d, n = std::min(VEC, HS - d);
                    store_part(to.dk.at(b, t, kv) + d, load16(dk + at), n);
                    store_part(to.dv.at(b, t, kv) + d, load16(dv + at), n);
                }
    }
}

// As flash.cpp: one task is a head where there are enough, else heads are cut by keys for dk and dv, then by queries.
EXPORT void attention_backward(T* dq, T* dk, T* dv, const int64_t* gradient_strides, const T* dout, const T* q,
                               const T* k, const T* v, const T* out, const float* lse, const int64_t* strides,
                               int64_t B, int64_t tokens, int64_t NH, int64_t NKV, int64_t HS, int64_t causal,
                               int64_t window, char* workspace, int64_t thread_bytes, int64_t most_threads) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Gradients to = {{dq, gradient_strides}, {dk, gradient_strides + 3}, {dv, gradient_strides + 6}};
    const Inputs in = {{dout, shape}, {q, strides}, {k, strides + 3}, {v, strides + 6}, {out, shape}, lse};
    const int threads = int(std::min<int64_t>(omp_get_max_threads(), most_threads));
    const bool whole_heads = B * NKV >= threads;
    const int64_t piece = whole_heads ? tokens : piece_of(tokens, B * NKV, threads, BACK);

#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        const Scratch scratch = scratch_of_thread(workspace, thread_bytes);
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t b = 0; b < B; b++)
            for (int64_t kv = 0; kv < NKV; kv++)
                for (int64_t t = 0; t < tokens; t += piece) {
                    const int64_t end = std::min(tokens, t + piece);
                    if (whole_heads)
                        backward_part<true, true>(to, in, b, kv, 0, tokens, 0, tokens, shape, scratch);
                    else
                        backward_part<true, false>(to, in, b, kv, t, end, 0, tokens, shape, scratch);
                }
        if (!whole_heads) {
#pragma omp for collapse(3) schedule(dynamic)
            for (int64_t b = 0; b < B; b++)
                for (int64_t kv = 0; kv < NKV; kv++)
                    for (int64_t t = 0; t < tokens; t += piece)
                        backward_part<false, true>(to, in, b, kv, 0, tokens, t, std::min(tokens, t + piece), shape,
                                                   scratch);
        }
    }
}
