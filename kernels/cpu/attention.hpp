// What the attention kernels share: tensors of heads, whose rows may lie apart.
#pragma once

#include "common.hpp"

#include <algorithm>

// A (B, T, heads, HS) tensor with any strides but the last, which is 1: q, k and v are slices of one packed tensor.
template <class Element>
struct Heads {
    Element* p;
    int64_t b_stride, t_stride, h_stride;
    Heads(Element* p, const int64_t* strides) : p(p), b_stride(strides[0]), t_stride(strides[1]), h_stride(strides[2]) {}
    Element* at(int64_t b, int64_t t, int64_t h) const { return p + b * b_stride + t * t_stride + h * h_stride; }
};

// A contiguous (B, T, heads, HS) tensor: out and dout.
template <class Element>
Heads<Element> contiguous(Element* p, int64_t T_, int64_t heads, int64_t HS) {
    const int64_t strides[] = {T_ * heads * HS, heads * HS, HS};
    return {p, strides};
}
