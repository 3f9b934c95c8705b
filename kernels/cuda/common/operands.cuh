// Sums of one product as an operand of the next, without a way through memory: lane l holds of a 16 x 8 block of sums
// the elements that it must bring of the same block of a (matrix.cuh, multiply_add).
//
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
#pragma once

#include "common/types.cuh"

// Two neighbours, rounded to nearest even, and back; the first is in the lower half. cvt.rn.bf16x2.f32, cvt.rn.f16x2.f32
template <typename T>
__device__ unsigned packed_pair(float first, float second) {
    unsigned pair;
    from_float_pair(reinterpret_cast<T*>(&pair), first, second);
    return pair;
}

template <typename T>
__device__ float2 unpacked_pair(unsigned pair) {
    return to_float_pair(reinterpret_cast<const T*>(&pair));
}

// The 16 x 16 matrix whose left and right half, 16 x 8 each, are sums.
template <typename T>
__device__ void to_operand(unsigned (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = packed_pair<T>(left[0], left[1]);
    a[1] = packed_pair<T>(left[2], left[3]);
    a[2] = packed_pair<T>(right[0], right[1]);
    a[3] = packed_pair<T>(right[2], right[3]);
}
