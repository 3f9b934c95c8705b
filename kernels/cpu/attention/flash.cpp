#include "flash.hpp"

// Block sizes are multiples of every register tile they meet.
constexpr int64_t KEYS = 96, QUERIES = 48;              // forward
constexpr int64_t KEYS_BACK = 48, QUERIES_BACK = 96;    // backward
constexpr int64_t PADDED = 96;                          // tokens are padded to this in scratch
constexpr int OUT_ROWS = 6;                             // rows of the tile that multiplies into HS columns

// One head of x, tokens t0 to t1, as [units of tokens][D]. Tokens up to a multiple of PADDED and columns from HS are 0.
static void pack_rows(float* to, const Heads<const T>& x, int64_t b, int64_t h, int64_t t0, int64_t t1, int64_t HS,
                      int64_t D) {
    for (int64_t t = t0; t < t0 + round_up(t1 - t0, PADDED); t += UNIT, to += D)
        for (int64_t d = 0; d < D; d += VEC) {
            auto row = [&](int64_t t) {
                return t < t1 && d < HS ? load_part(x.at(b, t, h) + d, std::min(VEC, HS - d)) : vec{};
            };
            store16(to + d, pair(row(t), UNIT == 2 ? row(t + 1) : vec{}));
        }
}

// The same tokens as panels of P along HS, for the products that sum over HS.
template <int P>
static void pack_panels(float* to, const Heads<const T>& x, int64_t b, int64_t h, int64_t t0, int64_t t1, int64_t HS) {
    const Operand head = {x.at(b, 0, h), x.t_stride, 1};
    for (int64_t t = t0; t < t0 + round_up(t1 - t0, PADDED); t += P)
        pack_panel<P>(to + (t - t0) * units(HS), head, t, t1, 0, HS);
}

// exp magnifies the rounding of a large score: sums of this many units, then added, round less than one long sum.
constexpr int64_t SUMMED = 32;

// s[keys][width] = keys times queries, both in panels. Tiles of which no query sees any key stay unwritten: the first
// key is `ahead` of the first query, far below 0 where nothing is masked; the first query that does not see it any more
// is `gone` further, far above where there is no window.
static void scores(float* s, const float* key_panels, const float* query_panels, int64_t keys, int64_t width,
                   int64_t depth, int64_t ahead, int64_t gone) {
    for (int64_t j = 0; j < width; j += TILE_COLS)
        for (int64_t i = std::max<int64_t>(0, j - gone + 1) / TILE_ROWS * TILE_ROWS;
             i < keys && i + ahead < j + TILE_COLS; i += TILE_ROWS)
            for (int64_t d = 0; d < depth; d += SUMMED)
                (d ? multiply_tile<TILE_ROWS, TILE_REGS, true> : multiply_tile<TILE_ROWS, TILE_REGS, false>)(
                    s + i * width + j, width, key_panels + i * depth + d * TILE_ROWS, 1, TILE_ROWS,
                    query_panels + j * depth + d * TILE_COLS, TILE_COLS, std::min(SUMMED, depth - d));
}

// c[OUT_ROWS][D] += A B; B is [depth][D] and A as multiply_tile wants it.
static void multiply_rows(float* c, int64_t D, const float* a, int64_t a_row, int64_t a_k, const float* b,
                          int64_t depth) {
#if defined(__AVX512F__)
    constexpr int WIDE = 4;
#else
    constexpr int WIDE = VEC / LANES;
#endif
    int64_t d = 0;
    for (; d + WIDE * LANES <= D; d += WIDE * LANES)
        multiply_tile<OUT_ROWS, WIDE, true>(c + d, D, a, a_row, a_k, b + d, D, depth);
#if defined(__AVX512F__)
    const int64_t rest = (D - d) / VEC;
    if (rest == 1) multiply_tile<OUT_ROWS, 1, true>(c + d, D, a, a_row, a_k, b + d, D, depth);
    if (rest == 2) multiply_tile<OUT_ROWS, 2, true>(c + d, D, a, a_row, a_k, b + d, D, depth);
    if (rest == 3) multiply_tile<OUT_ROWS, 3, true>(c + d, D, a, a_row, a_k, b + d, D, depth);
#endif
}

// ---- forward --------------------------------------------------------------------------------------------------

// Queries q0 to q_end (at most QUERIES) of one head, against keys and values packed from token `packed` on, which is a
// multiple of KEYS.
static void forward_block(T* out_row, int64_t out_stride, float* lse, const float* query_panels,
                          const float* key_panels, const float* value_rows, int64_t packed, int64_t q0, int64_t q_end,
                          const Shape& shape, int64_t D, Scratch scratch) {
    const int64_t depth = units(shape.HS);
    float* s = scratch.floats(KEYS * QUERIES);
    float* out = scratch.floats(QUERIES * D);  // [query][D], not yet divided by the sum
    float rescale[QUERIES], sum[QUERIES];
    Running<QUERIES> running;
    std::fill(out, out + QUERIES * D, 0.0f);

    const int64_t all_keys = shape.keys(q_end - 1), first = shape.first_key(q0) / KEYS * KEYS;
    for (int64_t k0 = first; k0 < all_keys; k0 += KEYS) {
        const int64_t keys = std::min(KEYS, all_keys - k0), ahead = shape.causal ? k0 - q0 : NEVER;
        scores(s, key_panels + (k0 - packed) * depth, query_panels, keys, QUERIES, depth, ahead, shape.gone(ahead));
        if (softmax_block(s, running, rescale, keys, k0, q0, shape) && k0 > first)
            for (int64_t r = 0; r < QUERIES; r++)
                for (int64_t d = 0; d < D; d += VEC) store16(out + r * D + d, load16(out + r * D + d) * rescale[r]);
        for (int64_t r = 0; r < QUERIES; r += OUT_ROWS) {
            const int64_t seen = units(std::min(keys, shape.keys(q0 + r + OUT_ROWS - 1) - k0));
            const int64_t from = std::max<int64_t>(0, shape.first_key(q0 + r) - k0) / UNIT;
            if (seen > from)
                multiply_rows(out + r * D, D, s + r + from * QUERIES, 1, QUERIES,
                              value_rows + ((k0 - packed) / UNIT + from) * D, seen - from);
        }
    }
    for (int64_t c = 0; c < running.VECS; c++) store16(sum + c * VEC, running.sum[c]);
    for (int64_t r = 0; r < q_end - q0; r++) {
        lse[q0 + r] = running.max[r / VEC][r % VEC] * shape.scale() + std::log(sum[r]);
        for (int64_t d = 0; d < shape.HS; d += VEC)
            store_part(out_row + r * out_stride + d, load16(out + r * D + d) / sum[r], std::min(VEC, shape.HS - d));
    }
}

EXPORT void attention_forward(T* out_data, float* lse, const T* q_data, const T* k_data, const T* v_data,
                              const int64_t* strides, int64_t B, int64_t tokens, int64_t NH, int64_t NKV, int64_t HS,
                              int64_t causal, int64_t window, char* workspace, int64_t thread_bytes,
                              int64_t most_threads) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Heads<const T> q(q_data, strides), k(k_data, strides + 3), v(v_data, strides + 6);
    const Heads<T> out(out_data, shape);
    const int64_t D = round_up(HS, VEC), depth = units(HS), padded = round_up(tokens, PADDED);
    const int threads = int(std::min<int64_t>(omp_get_max_threads(), most_threads));
    const int64_t piece = piece_of(tokens, B * NKV, threads, QUERIES);

#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < B; b++)
        for (int64_t kv = 0; kv < NKV; kv++)
            for (int64_t begin = 0; begin < tokens; begin += piece) {
                Scratch scratch = {(float*)(workspace + omp_get_thread_num() * thread_bytes)};
                float* key_panels = scratch.floats(padded * depth);
                float* value_rows = scratch.floats(padded / UNIT * D);
                float* query_panels = scratch.floats(PADDED * depth);
                const int64_t end = std::min(tokens, begin + piece), keys = shape.keys(end - 1);
                const int64_t packed = shape.first_key(begin) / KEYS * KEYS;
                pack_panels<TILE_ROWS>(key_panels, k, b, kv, packed, keys, HS);
                pack_rows(value_rows, v, b, kv, packed, keys, HS, D);
                for (int64_t h = kv * shape.group(); h < (kv + 1) * shape.group(); h++)
                    for (int64_t q0 = begin; q0 < end; q0 += QUERIES) {
                        const int64_t q_end = std::min(end, q0 + QUERIES);
                        pack_panels<TILE_COLS>(query_panels, q, b, h, q0, q_end, HS);
                        forward_block(out.at(b, q0, h), out.t_stride, lse + (b * NH + h) * tokens, query_panels,
                                      key_panels, value_rows, packed, q0, q_end, shape, D, scratch);
                    }
            }
}

// ---- backward -------------------------------------------------------------------------------------------------

// One head's queries (or keys) in the forms that backward's products want.
struct Packed {
    float *first_panels, *second_panels;  // of q and dout, or of k and v
    float *first_rows, *second_rows;      // v is not needed as rows
};

// delta, the sum of dout * out of each query, from panels of both. It is summed in the order in which `scores` sums dp:
// where a query sees one key, out is that key's value, and dp - delta must be exactly 0.
static void row_products(float* delta, const float* dout_panels, const float* out_panels, int64_t queries,
                         int64_t depth) {
    for (int64_t t = 0; t < queries; t += TILE_COLS)
        for (int64_t lane = 0; lane < TILE_COLS; lane += LANES) {
            const float *a = dout_panels + t * depth + lane, *b = out_panels + t * depth + lane;
            reg total = {};
            for (int64_t d = 0; d < depth; d += SUMMED) {
                reg sum = {};
                for (int64_t i = d; i < std::min(depth, d + SUMMED); i++)
                    sum = multiply_add(sum, load_reg(a + i * TILE_COLS), load_reg(b + i * TILE_COLS));
                total += sum;
            }
            store_reg(delta + t + lane, total);
        }
}

// Gradients of one key/value head from keys [k_begin, k_end) and of its query heads from queries [q_begin, q_end).
// dk and dv are written if WANT_KEYS (then the queries must be all), dq if WANT_QUERIES (then the keys).
template <bool WANT_KEYS, bool WANT_QUERIES>
static void backward_part(const Gradients& to, const Inputs& in, int64_t b, int64_t kv, int64_t k_begin, int64_t k_end,
                          int64_t q_begin, int64_t q_end, const Shape& shape, Scratch scratch) {
    const int64_t HS = shape.HS, D = round_up(HS, VEC), depth = units(HS);
    if (shape.causal) {  // earlier queries see none of these keys, and these queries none of the later keys
        q_begin = std::max(q_begin, k_begin / QUERIES_BACK * QUERIES_BACK);
        k_end = std::min(k_end, q_end);
    }
    k_begin = std::max(k_begin, shape.first_key(q_begin) / KEYS_BACK * KEYS_BACK);  // nor, behind a window, the others
    q_end = std::min(q_end, shape.queries(k_end - 1));
    const int64_t key_count = round_up(k_end - k_begin, PADDED), query_count = round_up(q_end - q_begin, PADDED);
    float* k_panels = scratch.floats(key_count * depth);
    float* v_panels = scratch.floats(key_count * depth);
    float* k_rows = scratch.floats(key_count / UNIT * D);
    float* dk = scratch.floats(key_count * D);
    float* dv = scratch.floats(key_count * D);
    float* q_panels = scratch.floats(query_count * depth);
    float* dout_panels = scratch.floats(query_count * depth);
    float* q_rows = scratch.floats(query_count / UNIT * D);
    float* dout_rows = scratch.floats(query_count / UNIT * D);
    float* dq = scratch.floats(query_count * D);
    float* lse = scratch.floats(query_count);
    float* delta = scratch.floats(query_count);
    float* s = scratch.floats(KEYS_BACK * QUERIES_BACK);
    float* dp = scratch.floats(KEYS_BACK * QUERIES_BACK);
    float* ds_units = scratch.floats(KEYS_BACK / UNIT * QUERIES_BACK);

    pack_panels<TILE_ROWS>(k_panels, in.k, b, kv, k_begin, k_end, HS);
    pack_panels<TILE_ROWS>(v_panels, in.v, b, kv, k_begin, k_end, HS);
    if (WANT_QUERIES) pack_rows(k_rows, in.k, b, kv, k_begin, k_end, HS, D);
    if (WANT_KEYS) std::fill(dk, dk + 2 * key_count * D, 0.0f);  // dv lies behind dk

    for (int64_t h = kv * shape.group(); h < (kv + 1) * shape.group(); h++) {
        pack_panels<TILE_COLS>(q_panels, in.q, b, h, q_begin, q_end, HS);
        pack_panels<TILE_COLS>(dout_panels, in.dout, b, h, q_begin, q_end, HS);
        pack_panels<TILE_COLS>(dq, in.out, b, h, q_begin, q_end, HS);  // dq is still free
        row_products(delta, dout_panels, dq, query_count, depth);
        if (WANT_KEYS) {
            pack_rows(q_rows, in.q, b, h, q_begin, q_end, HS, D);
            pack_rows(dout_rows, in.dout, b, h, q_begin, q_end, HS, D);
        }
        if (WANT_QUERIES) std::fill(dq, dq + query_count * D, 0.0f);
        for (int64_t t = q_begin; t < q_begin + query_count; t++)  // padding: an infinite sum, hence probability 0
            lse[t - q_begin] =
                t < q_end ? in.lse[(b * shape.NH + h) * shape.tokens + t] : std::numeric_limits<float>::infinity();
        for (int64_t k0 = k_begin; k0 < k_end; k0 += KEYS_BACK)
            for (int64_t q0 = q_begin; q0 < q_end; q0 += QUERIES_BACK) {
                const int64_t keys = std::min(KEYS_BACK, k_end - k0), ahead = shape.causal ? k0 - q0 : NEVER;
                if (q0 + QUERIES_BACK <= shape.first_query(k0) || k0 + keys <= shape.first_key(q0)) continue;
                const int64_t gone = shape.gone(ahead);
                const int64_t ki = k0 - k_begin, qi = q0 - q_begin;
                const int64_t first = std::max<int64_t>(0, ahead);  // earlier queries of the block see none of the keys
                scores(s, k_panels + ki * depth, q_panels + qi * depth, keys, QUERIES_BACK, depth, ahead, gone);
                scores(dp, v_panels + ki * depth, dout_panels + qi * depth, keys, QUERIES_BACK, depth, ahead, gone);
                // OUT_ROWS of which one sees any of the keys are read
                const bool window = k0 < shape.first_key(q0 + QUERIES_BACK - 1);
                const int64_t seeing = window ? k0 + keys + shape.window - q0 : QUERIES_BACK;
                const int64_t end = std::min(QUERIES_BACK, round_up(seeing + OUT_ROWS, VEC));
                backward_scores<QUERIES_BACK>(s, dp, ds_units, lse + qi, delta + qi, keys, first, end, k0, q0, shape);
                if (WANT_KEYS)
                    for (int64_t r = 0; r < keys; r += OUT_ROWS) {
                        // from the first query that sees one of these keys to the last one
                        const int64_t from = std::max<int64_t>(0, ahead + r) / UNIT;
                        const int64_t a = r * QUERIES_BACK + from, rows = (qi / UNIT + from) * D;
                        const int64_t count = units(std::min(QUERIES_BACK, gone + r + OUT_ROWS - 1)) - from;
                        if (count <= 0) continue;
                        multiply_rows(dv + (ki + r) * D, D, s + a, QUERIES_BACK, 1, dout_rows + rows, count);
                        multiply_rows(dk + (ki + r) * D, D, dp + a, QUERIES_BACK, 1, q_rows + rows, count);
                    }
                if (WANT_QUERIES)
                    for (int64_t r = first; r < QUERIES_BACK; r += OUT_ROWS) {
                        const int64_t seen = units(std::min(keys, shape.keys(q0 + r + OUT_ROWS - 1) - k0));
                        const int64_t from = std::max<int64_t>(0, shape.first_key(q0 + r) - k0) / UNIT;
                        if (seen > from)
                            multiply_rows(dq + (qi + r) * D, D,
                                          (PAIRED ? ds_units : dp) + r + from * QUERIES_BACK, 1, QUERIES_BACK,
                                          k_rows + (ki / UNIT + from) * D, seen - from);
                    }
            }
        auto write = [&](const Heads<T>& x, int64_t head, const float* rows, int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++)
                for (int64_t d = 0; d < HS; d += VEC)
                    store_part(x.at(b, t, head) + d, load16(rows + (t - begin) * D + d), std::min(VEC, HS - d));
        };
        if (WANT_QUERIES) write(to.dq, h, dq, q_begin, q_end);
        if (WANT_KEYS && h + 1 == (kv + 1) * shape.group()) {
            write(to.dk, kv, dk, k_begin, k_end);
            write(to.dv, kv, dv, k_begin, k_end);
        }
    }
}

// Where there are heads enough for the threads, one task is a head: it computes scores once for all three gradients,
// and no two tasks write to one place. Else heads are cut twice, by keys for dk and dv, then by queries for dq, and the
// scores are computed twice. The sums are the same, in the same order, either way.
EXPORT void attention_backward(T* dq, T* dk, T* dv, const int64_t* gradient_strides, const T* dout, const T* q,
                               const T* k, const T* v, const T* out, const float* lse, const int64_t* strides,
                               int64_t B, int64_t tokens, int64_t NH, int64_t NKV, int64_t HS, int64_t causal,
                               int64_t window, char* workspace, int64_t thread_bytes, int64_t most_threads) {
    const Shape shape = {B, tokens, NH, NKV, HS, causal, window < tokens ? window : 0};
    const Gradients to = {{dq, gradient_strides}, {dk, gradient_strides + 3}, {dv, gradient_strides + 6}};
    const Inputs in = {{dout, shape}, {q, strides}, {k, strides + 3}, {v, strides + 6}, {out, shape}, lse};
    const int threads = int(std::min<int64_t>(omp_get_max_threads(), most_threads));
    const bool whole_heads = B * NKV >= threads;
    const int64_t piece = whole_heads ? tokens : piece_of(tokens, B * NKV, threads, QUERIES_BACK);

#pragma omp parallel num_threads(threads)
    {
        const Scratch scratch = {(float*)(workspace + omp_get_thread_num() * thread_bytes)};
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
