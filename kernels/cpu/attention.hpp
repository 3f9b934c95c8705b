// What the attention kernels share: a shape, and tensors of heads whose rows may lie apart.
#pragma once

#include "common.hpp"

#include <algorithm>

// As in reference/attention.py, with T (here the storage type) called `tokens`.
struct Shape {
    int64_t B, tokens, NH, NKV, HS, causal, window;
    float scale() const { return float(1 / std::sqrt(double(HS))); }
    int64_t group() const { return NH / NKV; }  // query heads for one key/value head
    // Keys that query t sees: those from `first_key(t)` on and before `keys(t)`.
    int64_t keys(int64_t t) const { return causal ? t + 1 : tokens; }
    int64_t first_key(int64_t t) const { return window ? std::max<int64_t>(0, t - window + 1) : 0; }
    // Queries that see key t: those from `first_query(t)` on and before `queries(t)`.
    int64_t first_query(int64_t t) const { return causal ? t : 0; }
    int64_t queries(int64_t t) const { return window ? std::min(tokens, t + window) : tokens; }
    // A key that is so far ahead of a query is seen by this many from it on, and what is seen before; without a window
    // more than there are.
    int64_t gone(int64_t ahead) const { return window ? ahead + window : INT64_MAX / 2; }
};

// A (B, T, heads, HS) tensor. Its last stride is 1; the others are given, because q, k and v are slices of one tensor.
template <class Element>
struct Heads {
    Element* p;
    int64_t b_stride, t_stride, h_stride;
    Heads(Element* p, const int64_t* strides)
        : p(p), b_stride(strides[0]), t_stride(strides[1]), h_stride(strides[2]) {}
    // Contiguous, with the sizes of q.
    Heads(Element* p, const Shape& s) : p(p), b_stride(s.tokens * s.NH * s.HS), t_stride(s.NH * s.HS), h_stride(s.HS) {}
    Element* at(int64_t b, int64_t t, int64_t h) const { return p + b * b_stride + t * t_stride + h * h_stride; }
};
