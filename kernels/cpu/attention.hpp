// What the attention kernels share: a shape, and tensors of heads whose rows may lie apart.
#pragma once

#include "common.hpp"

#include <algorithm>

// As in reference/attention.py, with T (here the storage type) called `tokens`.
struct Shape {
    int64_t B, tokens, NH, NKV, HS, causal;
    float scale() const { return float(1 / std::sqrt(double(HS))); }
    int64_t group() const { return NH / NKV; }  // query heads for one key/value head
    // Keys that query t sees: those before `keys(t)`.
    int64_t keys(int64_t t) const { return causal ? t + 1 : tokens; }
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
