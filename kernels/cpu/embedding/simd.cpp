#include "common.hpp"

constexpr int64_t AHEAD = 2;  // rows

// out[b, t] = wte[tokens[b, t]], and + wpe[t] where there are POSITIONS. Tokens come in no order, so that the row after
// this one is not where the hardware would look for it: it is asked for in good time.
template <bool STREAM, bool POSITIONS>
static void forward(T* out, const int64_t* tokens, const T* wte, const T* wpe, int64_t rows, int64_t length,
                    int64_t C) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const T *token = wte + tokens[r] * C, *position = POSITIONS ? wpe + r % length * C : nullptr;
            const T* ahead = wte + tokens[r + AHEAD < rows ? r + AHEAD : r] * C;
            for_vectors(C, [&](int64_t i, int64_t n, int64_t) {
                prefetch(ahead + i);
                vec x = load_part(token + i, n);
                put_part<STREAM>(out + r * C + i, POSITIONS ? x + load_part(position + i, n) : x, n);
            });
        }
        if (STREAM) stream_fence();
    }
}

EXPORT void embedding_forward(T* out, const int64_t* tokens, const T* wte, const T* wpe, int64_t B, int64_t length,
                              int64_t C) {
    bool stream = C % VEC == 0 && worth_streaming(out, B * length * C * sizeof(T));
    auto f = stream ? (wpe ? forward<true, true> : forward<true, false>)
                    : (wpe ? forward<false, true> : forward<false, false>);
    f(out, tokens, wte, wpe, B * length, length, C);
}

// Sorts 0 … rows - 1 by token, keeping their order within a token: those of token v are order[start[v] : start[v + 1]].
static void sort_by_token(int32_t* start, int32_t* order, const int64_t* tokens, int64_t rows, int64_t V) {
    memset(start, 0, (V + 1) * sizeof *start);
    for (int64_t r = 0; r < rows; r++) start[tokens[r]]++;
    for (int64_t v = 1; v <= V; v++) start[v] += start[v - 1];               // the end of each token's range
    for (int64_t r = rows - 1; r >= 0; r--) order[--start[tokens[r]]] = r;  // filled backwards, down to its start
}

// gradient[i : i + n] = (or +=) sum over `rows` of dout, in fp32, rounded once
template <bool STREAM>
INLINE void sum_rows(T* gradient, const T* dout, const int32_t* rows, int64_t count, int64_t C, bool accumulate) {
    for_vectors(C, [&](int64_t i, int64_t n, int64_t) {
        vec sum = accumulate ? load_part(gradient + i, n) : vec{};
        for (int64_t k = 0; k < count; k++) sum += load_part(dout + rows[k] * C + i, n);
        put_part<STREAM>(gradient + i, sum, n);
    });
}

// No two threads write the same row of the table and each row is summed in the order of its tokens: no atomics, and
// the same bits every time. Rows without a token are written as zero in the same sweep, or skipped when accumulating.
template <bool STREAM>
static void backward(T* dwte, T* dwpe, const T* dout, const int64_t* tokens, int64_t B, int64_t length, int64_t V,
                     int64_t C, bool accumulate, int32_t* start, int32_t* order) {
    sort_by_token(start, order, tokens, B * length, V);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 64) nowait
        for (int64_t v = 0; v < V; v++) {
            int64_t count = start[v + 1] - start[v];
            if (count || !accumulate) sum_rows<STREAM>(dwte + v * C, dout, order + start[v], count, C, accumulate);
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < (dwpe ? length : 0); t++)
            for_vectors(C, [&](int64_t i, int64_t n, int64_t) {
                vec sum = accumulate ? load_part(dwpe + t * C + i, n) : vec{};
                for (int64_t b = 0; b < B; b++) sum += load_part(dout + (b * length + t) * C + i, n);
                store_part(dwpe + t * C + i, sum, n);
            });
        if (STREAM) stream_fence();
    }
}

EXPORT void embedding_backward(T* dwte, T* dwpe, const T* dout, const int64_t* tokens, int64_t B, int64_t length,
                               int64_t V, int64_t C, int64_t accumulate, int32_t* scratch) {
    bool stream = !accumulate && C % VEC == 0 && worth_streaming(dwte, V * C * sizeof(T));
    (stream ? backward<true> : backward<false>)(dwte, dwpe, dout, tokens, B, length, V, C, accumulate, scratch,
                                                scratch + V + 1);
}
